#!lua flags=no-writes
-- QLEN. KEYS: the queue.
local mark, wrong = mark_of(KEYS[1])
if wrong then
  return wrong
end
return mark and redis.call('LLEN', KEYS[1]) - 1 or 0
