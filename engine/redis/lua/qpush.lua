#!lua
-- QPUSH. KEYS: the queue. ARGV: the mark if it has to be made; the values, as one msgpack array.
-- Returns its length.
local mark, wrong = mark_of(KEYS[1])
if wrong then
  return wrong
end
if not mark then
  redis.call('RPUSH', KEYS[1], ARGV[1])
end
push(KEYS[1], cmsgpack.unpack(ARGV[2]))
return redis.call('LLEN', KEYS[1]) - 1
