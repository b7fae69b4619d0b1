-- One command by itself. KEYS: its key. ARGV: its words; behind them, if it takes values, where its receipts go and the
-- number of the first one. (The receipts are no key for Redis: in a slot that is being moved, Redis would refuse a script
-- whose keys are not all in the same place.)

-- It is never undone.
local function undo_by() end

local function popped(_, mark, from, taken)
  leave_receipts(ARGV[#ARGV - 1], ARGV[#ARGV], mark, from, taken)
  return taken
end

--COMMANDS

return COMMAND(KEYS[1], unpack(ARGV))
