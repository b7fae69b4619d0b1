#!lua flags=allow-oom
-- BQPOP, for all who wait for the same queue. KEYS: the queue. ARGV: the front's receipts; the token of the first value,
-- the others have the numbers behind it; how many values at most; how many bytes, though one value may have more.
-- Returns nil if there is nothing to take, else what `leave_receipt` returns, and the values.
local mark, wrong = mark_of(KEYS[1])
if wrong then
  return wrong
end
if not mark then
  return false
end
local taken, bytes = {''}, 0
for index = 1, tonumber(ARGV[3]) do
  local value = redis.call('LINDEX', KEYS[1], index)
  if not value then
    break
  end
  bytes = bytes + #value
  if index > 1 and bytes > tonumber(ARGV[4]) then
    break
  end
  taken[index + 1] = value
end
if #taken == 1 then
  return false
end
pop_first(KEYS[1], mark, #taken - 1, taken[#taken])
for index = 2, #taken do
  local token = string.format('%.0f', tonumber(ARGV[2]) + index - 2)
  local left_out = leave_receipt(ARGV[1], token, mark, FIRST, taken[index])
  if left_out ~= '' then
    taken[1] = left_out
  end
end
return taken
