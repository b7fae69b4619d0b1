#!lua
-- Writes a piece of a queue that is moved here. KEYS: the queue. ARGV: the mark if it has to be made; how many values come
-- before the piece; its values. What is there already is not written again, so it does not matter how often this is run.
-- Returns the length.
local mark, wrong = mark_of(KEYS[1])
if wrong then
  return wrong
end
local offset = tonumber(ARGV[2])
local length = mark and redis.call('LLEN', KEYS[1]) - 1 or 0
if length < offset then
  return {err = 'GAP the queue has ' .. length .. ' values'}
end
if not mark then
  redis.call('RPUSH', KEYS[1], ARGV[1])
end
local values = {}
for index = length - offset + 3, #ARGV do
  values[#values + 1] = ARGV[index]
end
push(KEYS[1], values)
return length + #values
