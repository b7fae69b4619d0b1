#!lua
-- An atomic unit: all of its commands, or none. KEYS: all keys that it names. ARGV: the front's receipts; the token of
-- its first command, the others have the numbers behind it; the first 24 digits of the marks it may need; a name for keys
-- that only live while this runs; how many bytes it may pop; the commands, as a msgpack array of arrays of a name and its
-- words.
-- Returns {1, reply, ...} with a reply for each command, or {0, index, error} if the one with that index, from 0, was
-- refused. A reply is {'ok', n}, {'integer', n}, {'value', v}, {'null'}, {'failure', error} or, of a pop, {'popped', what
-- `leave_receipt` returns, value}.
--
-- Each change says how to undo it, and what is replaced is only renamed; so a refusal is undone in the time it took. So
-- is an error of Redis, when its user may not do all of this, say.
local RECEIPTS, ASIDE, POPPED_MAX = ARGV[1], ARGV[4], tonumber(ARGV[5])
local commands = cmsgpack.unpack(ARGV[6])
local first_token, current, marks, popped_bytes = tonumber(ARGV[2]), 0, 0, 0
local undo, aside, receipts = {}, {}, {}

-- While a slot is being moved, keys that do not exist cannot be used beside those that do, and it would show too late.
if #KEYS > 0 then
  local probe = redis.pcall('EXISTS', ASIDE .. 1, ASIDE .. 2)
  if type(probe) == 'table' then
    return {err = 'TRYAGAIN the slot is being moved'}
  end
end

-- Takes away what a key holds, and says whether that was anything.
local function move_aside(key)
  if redis.call('EXISTS', key) == 0 then
    return false
  end
  local name = ASIDE .. #aside + 1
  aside[#aside + 1] = name
  redis.call('RENAME', key, name)
  undo[#undo + 1] = function() redis.call('RENAME', name, key) end
  return true
end

local function failure(text)
  return {'failure', text}
end

-- A queue's mark, false or nothing and the reply that refuses the command.
local function queue_of(key)
  local mark, wrong = mark_of(key)
  if wrong then
    return nil, failure(wrong == PLAIN and 'plain' or wrong == FOREIGN and 'foreign' or wrong.err)
  end
  return mark
end

local function popped(key, mark, from, value)
  local token = string.format('%.0f', first_token + current)
  popped_bytes = popped_bytes + #value
  local reply = {'popped', mark, value}
  receipts[#receipts + 1] = {token, mark, from, value, reply}
  undo[#undo + 1] = function()
    if from == FIRST then
      redis.call('LSET', key, 0, value)
      redis.call('LPUSH', key, mark)
    else
      redis.call('RPUSH', key, value)
    end
  end
  return popped_bytes > POPPED_MAX and failure('popped enough') or reply
end

-- What each command does; its words are handed on as a table, for Lua's stack would not hold the longest.
local DO = {}

function DO.PING()
  return {'value', 'PONG'}
end

function DO.SET(words)
  local key, value, ttl_ms, condition = unpack(words)
  local exists = condition ~= '' and redis.call('EXISTS', key) == 1
  if condition == 'NX' and exists then
    return failure('key already exists')
  end
  if condition == 'XX' and not exists then
    return failure('key not found')
  end
  move_aside(key)
  undo[#undo + 1] = function() redis.call('DEL', key) end
  if ttl_ms == '' then
    redis.call('SET', key, value)
  else
    redis.call('SET', key, value, 'PX', ttl_ms)
  end
  return {'ok', 0}
end

function DO.GET(words)
  local value = redis.pcall('GET', words[1])
  if type(value) == 'table' then
    return failure(redis.pcall('TYPE', words[1]).ok == 'list' and 'queue' or 'foreign')
  end
  return value and {'value', value} or failure('key not found')
end

function DO.DELETE(words)
  local count = 0
  for _, key in ipairs(words) do
    if move_aside(key) then
      count = count + 1
    end
  end
  return count > 0 and {'integer', count} or failure('key not found')
end

function DO.EXISTS(words)
  local count = 0
  for _, key in ipairs(words) do
    count = count + redis.call('EXISTS', key)
  end
  return {'integer', count}
end

function DO.QPUSH(words)
  local key, values = words[1], words
  local mark, refusal = queue_of(key)
  if refusal then
    return refusal
  end
  local length = redis.call('LLEN', key)
  undo[#undo + 1] = function()
    if mark then
      redis.call('LTRIM', key, 0, length - 1)
    else
      redis.call('DEL', key)
    end
  end
  if not mark then
    redis.call('RPUSH', key, MARK_PREFIX .. ARGV[3] .. string.format('%08x', marks))
    marks = marks + 1
  end
  table.remove(values, 1)
  push(key, values)
  return {'ok', redis.call('LLEN', key) - 1}
end

function DO.QPOP(words)
  local key = words[1]
  local mark, refusal = queue_of(key)
  if refusal then
    return refusal
  end
  if not mark then
    return {'null'}
  end
  if redis.call('LLEN', key) == 1 then
    return failure('queue is empty')
  end
  return popped(key, mark, LAST, redis.call('RPOP', key))
end

function DO.BQPOP(words)
  local key = words[1]
  local mark, refusal = queue_of(key)
  if refusal then
    return refusal
  end
  local value = mark and redis.call('LINDEX', key, 1)
  if not value then
    return {'null'}
  end
  pop_first(key, mark, 1, value)
  return popped(key, mark, FIRST, value)
end

function DO.QLEN(words)
  local key = words[1]
  local mark, refusal = queue_of(key)
  return refusal or {'integer', mark and redis.call('LLEN', key) - 1 or 0}
end

function DO.TTL(words)
  local left_ms = redis.call('PTTL', words[1])
  return {'integer', left_ms < 0 and left_ms or math.max(1, math.ceil(left_ms / 1000))}
end

local CHANGES = {SET = true, DELETE = true, QPUSH = true, QPOP = true, BQPOP = true}

local function undone(answer)
  for step = #undo, 1, -1 do
    undo[step]()
  end
  return answer
end

local replies = {1}
for index, command in ipairs(commands) do
  current = index - 1
  local name = table.remove(command, 1)
  local done, reply = pcall(DO[name], command)
  if not done then
    return undone(type(reply) == 'table' and reply or {err = reply})
  end
  if reply[1] == 'failure' and CHANGES[name] then
    return undone({0, current, reply[2]})
  end
  replies[index + 1] = reply
end
for _, name in ipairs(aside) do
  redis.call('UNLINK', name)
end
for _, receipt in ipairs(receipts) do
  local token, mark, from, value, reply = unpack(receipt)
  reply[2] = leave_receipt(RECEIPTS, token, mark, from, value)
end
return replies
