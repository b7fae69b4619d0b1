-- What all scripts are made from: how a queue lies in Redis (engine/redis/format.py), and what was popped from it.
-- Definitions stand in paragraphs of their own: a script gets those it uses (engine/redis/scripts.py).

local MARK_PREFIX = 'holdfast:queue:'

local MARK_LENGTH = #MARK_PREFIX + 32

local FIRST, LAST = '<', '>'

local PUSH_MAX = 1000 -- arguments of one RPUSH: Lua's stack bounds them

local RECEIPTS_MS = 3600000 -- longer than any outage in which somebody would still ask for a receipt

local FOREIGN = {err = 'WRONGTYPE the key holds something foreign'}

-- The error that says what a key holds, of which Redis only says that it is of the wrong type.
local function wrong_type(key)
  local kind = redis.pcall('TYPE', key).ok
  if kind == 'string' then
    return {err = 'WRONGTYPE the key holds a plain value'}
  end
  return kind == 'list' and {err = 'WRONGTYPE the key holds a queue'} or FOREIGN
end

-- The mark of the queue at a key, false if the key holds nothing; or nil and an error.
local function mark_of(key)
  local mark = redis.pcall('LINDEX', key, 0)
  if type(mark) == 'table' then
    return nil, string.find(mark.err, 'WRONGTYPE', 1, true) and wrong_type(key) or mark
  end
  if mark and string.sub(mark, 1, #MARK_PREFIX) ~= MARK_PREFIX then
    return nil, FOREIGN
  end
  return mark
end

-- Appends values to the list at a key, and returns its length; nil if there are none.
local function push(key, values)
  local length
  for first = 1, #values, PUSH_MAX do
    length = redis.call('RPUSH', key, unpack(values, first, math.min(first + PUSH_MAX - 1, #values)))
  end
  return length
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

-- Puts a value back to the end that it was taken from.
local function put_back(key, mark, from, value)
  if from == FIRST then
    redis.call('LSET', key, 0, value)
    redis.call('LPUSH', key, mark)
  else
    redis.call('RPUSH', key, value)
  end
end

-- Whether the slot of a key is being moved to another node or from there: then keys that do not exist cannot be used
-- beside others.
local function is_moving(key)
  return type(redis.pcall('EXISTS', key, key .. ':')) == 'table'
end

-- Notes what was popped from which end, until the front says that it was handed over. `taken` is the answer to the pop: ''
-- and the values; '' becomes the mark if a note is left out, for then only the front can tell. In a slot that is being
-- moved notes go to where there are some already, or are left out: new ones on one node would stand in the way of those
-- that come from the other. `token` is the number of the first value, the others have those behind it.
local function leave_receipts(receipts, token, mark, from, taken)
  if redis.pcall('EXISTS', receipts) ~= 1 and is_moving(receipts) then
    taken[1] = mark
    return
  end
  for index = 2, #taken do
    local number = index == 2 and token or string.format('%.0f', token + index - 2)
    if type(redis.pcall('HSET', receipts, number, from .. mark .. taken[index])) ~= 'number' then
      taken[1] = mark
    end
  end
  redis.pcall('PEXPIRE', receipts, RECEIPTS_MS)
end
