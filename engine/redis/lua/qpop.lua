#!lua flags=allow-oom
-- QPOP. KEYS: the queue. ARGV: the front's receipts; the token of this pop. (The receipts are no key for Redis: in a slot
-- that is being moved, Redis would refuse a script whose keys are not all in the same place.)
-- Returns nil if there is no queue, 0 if it is empty, else what `leave_receipt` returns, and the value.
local mark, wrong = mark_of(KEYS[1])
if wrong then
  return wrong
end
if not mark then
  return false
end
if redis.call('LLEN', KEYS[1]) == 1 then
  return 0
end
local value = redis.call('RPOP', KEYS[1])
return {leave_receipt(ARGV[1], ARGV[2], mark, LAST, value), value}
