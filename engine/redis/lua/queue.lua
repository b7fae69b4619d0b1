-- Put in front of every script: how a queue lies in Redis (engine/redis/format.py).

local MARK_PREFIX = 'holdfast:queue:'
local MARK_LENGTH = #MARK_PREFIX + 32
local FIRST, LAST = '<', '>'
local PUSH_MAX = 1000 -- arguments of one RPUSH: Lua's stack bounds them

-- A receipt outlives any outage in which somebody would still ask for it; then nobody does any more.
local RECEIPTS_MS = 3600000

local PLAIN = {err = 'WRONGTYPE the key holds a plain value'}
local FOREIGN = {err = 'WRONGTYPE the key holds something foreign'}

-- The mark of the queue at a key, false if the key holds nothing; or nil and an error.
local function mark_of(key)
  local mark = redis.pcall('LINDEX', key, 0)
  if type(mark) == 'table' then
    if not string.find(mark.err, 'WRONGTYPE', 1, true) then
      return nil, mark
    end
    return nil, redis.pcall('TYPE', key).ok == 'string' and PLAIN or FOREIGN
  end
  if mark and string.sub(mark, 1, #MARK_PREFIX) ~= MARK_PREFIX then
    return nil, FOREIGN
  end
  return mark
end

-- Appends values to the list at a key.
local function push(key, values)
  for first = 1, #values, PUSH_MAX do
    redis.call('RPUSH', key, unpack(values, first, math.min(first + PUSH_MAX - 1, #values)))
  end
end

-- Takes so many values from the beginning of a queue; the mark steps in the place of the last of them. A user who may not
-- do all of this leaves everything as it was.
local function pop_first(key, mark, count, last)
  redis.call('LSET', key, count, mark)
  local popped = redis.pcall('LPOP', key, count)
  if popped.err then
    redis.call('LSET', key, count, last)
    error(popped)
  end
end

-- Whether the slot of a key is being moved to another node or from there: then keys that do not exist cannot be used
-- beside others.
local function is_moving(key)
  return type(redis.pcall('EXISTS', key, key .. ':')) == 'table'
end

-- Notes what was popped from which end, until the front says that it was handed over. In a slot that is being moved
-- the note goes to where the receipts are already, or is left out: new ones on one node would stand in the way of
-- those that come from the other. Returns '', or the mark if it was left out: then only the front can tell.
local function leave_receipt(receipts, token, mark, from, value)
  if redis.pcall('EXISTS', receipts) ~= 1 and is_moving(receipts) then
    return mark
  end
  local noted = redis.pcall('HSET', receipts, token, from .. mark .. value)
  redis.pcall('PEXPIRE', receipts, RECEIPTS_MS)
  return type(noted) == 'number' and '' or mark
end
