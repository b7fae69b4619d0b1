#!lua flags=allow-oom
-- Puts popped values back where they were taken from, if the queue is still the same. KEYS: the queue. ARGV: the front's
-- receipts; then for each value, the last pop first, its token and its receipt, or '' if there is one in Redis, or may be:
-- for then it is not known whether it was popped at all, or has come back already.
-- Returns how many came back; while the slot is being moved receipts may be on the other node, then nothing is done.
local mark = mark_of(KEYS[1])
local returned = 0
if is_moving(ARGV[1]) then
  for index = 2, #ARGV, 2 do
    if ARGV[index + 1] == '' and type(redis.pcall('HGET', ARGV[1], ARGV[index])) ~= 'string' then
      return {err = 'TRYAGAIN the slot is being moved'}
    end
  end
end
for index = 2, #ARGV, 2 do
  local token, receipt = ARGV[index], ARGV[index + 1]
  local noted = redis.pcall('HGET', ARGV[1], token)
  if type(noted) == 'string' then
    redis.call('HDEL', ARGV[1], token)
    receipt = noted
  end
  if mark and string.sub(receipt, 2, MARK_LENGTH + 1) == mark then
    local value = string.sub(receipt, MARK_LENGTH + 2)
    put_back(KEYS[1], mark, string.sub(receipt, 1, 1), value)
    returned = returned + 1
  end
end
return returned
