-- Commands on queues. Each is a function that is given the key and the words behind it, and returns the answer; an error
-- refuses it. It says by `undo_by(key, command of Redis)` how to undo what it does, and by `popped(key, mark, end, answer)`
-- which values it has taken from which end: '' and the values are its answer. What follows from that, alone.lua and
-- unit.lua know.

-- `made` is the mark of the queue if it has to be made; the values are one msgpack array. Answers the queue's length.
local function QPUSH(key, made, values)
  local mark, wrong = mark_of(key)
  if wrong then
    return wrong
  end
  if mark then
    local length = redis.call('LLEN', key)
    undo_by(key, 'LTRIM', key, 0, length - 1)
  else
    redis.call('RPUSH', key, made)
    undo_by(key, 'DEL', key)
  end
  return push(key, cmsgpack.unpack(values)) - 1
end

-- Answers nil if there is no queue, 0 if it is empty, else what it takes.
local function QPOP(key)
  local mark, wrong = mark_of(key)
  if wrong then
    return wrong
  end
  if not mark then
    return false
  end
  if redis.call('LLEN', key) == 1 then
    return 0
  end
  return popped(key, mark, LAST, {'', redis.call('RPOP', key)})
end

-- For all who wait for the same queue: `count_max` values and `bytes_max` bytes at most, though one value may have more.
-- Answers nil if there is nothing to take, else what it takes.
local function BQPOP(key, count_max, bytes_max)
  local mark, wrong = mark_of(key)
  if wrong then
    return wrong
  end
  local taken, bytes = {''}, 0
  for index = 1, mark and tonumber(count_max) or 0 do
    local value = redis.call('LINDEX', key, index)
    bytes = bytes + #(value or '')
    if not value or (index > 1 and bytes > tonumber(bytes_max)) then
      break
    end
    taken[index + 1] = value
  end
  if #taken == 1 then
    return false
  end
  pop_first(key, mark, #taken - 1, taken[#taken])
  return popped(key, mark, FIRST, taken)
end

-- Answers the queue's length, 0 if there is none.
local function QLEN(key)
  local mark, wrong = mark_of(key)
  return wrong or (mark and redis.call('LLEN', key) - 1 or 0)
end
