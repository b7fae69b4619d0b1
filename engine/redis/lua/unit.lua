-- An atomic unit: all of its commands, or none. KEYS: all keys that it names. ARGV: the front's receipts; the token of
-- its first command, the others have the numbers behind it; a name for keys that only live while this runs; how many bytes
-- it may pop; the commands, as a msgpack array of arrays: the function that does it, the arguments of that, and which
-- answer refuses it beside an error, as `tostring` has it, nil if it changes nothing.
-- Returns {1, answer, ...}, or {0, index, answer} if the command with that index, from 0, was refused; the answers are
-- those that the commands have by themselves.
--
-- What is not defined here is in common.lua, and in the families' files, which are put in where it says COMMANDS.
--
-- Each change says how to undo it, and what is replaced is only renamed; so a refusal is undone in the time it took. So
-- is an error of Redis, when its user may not do all of this, say.

local RECEIPTS, FIRST_TOKEN, ASIDE, POPPED_MAX = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])

local token, popped_bytes = FIRST_TOKEN, 0

local undo, aside, receipts = {}, {}, {}

local kept = {} -- keys whose whole former content undoing gives back: what Redis changes of them needs no undo any more

local function undo_by(key, ...)
  local words = {...}
  undo[#undo + 1] = function() redis.call(unpack(words)) end
  kept[key] = nil
end

local function popped(key, mark, from, taken)
  undo[#undo + 1] = function()
    for index = #taken, 2, -1 do
      put_back(key, mark, from, taken[index])
    end
  end
  kept[key] = nil
  for index = 2, #taken do
    popped_bytes = popped_bytes + #taken[index]
  end
  receipts[#receipts + 1] = {token, mark, from, taken}
  return taken
end

-- Keeps what a key holds, expiry included, until the unit is done. A copy leaves the key as it is. Else something small
-- takes the place of what it held, so that Redis still finds that it exists.
local function keep_all(key, as_copy)
  if redis.call('EXISTS', key) == 0 then
    undo_by(key, 'DEL', key)
  else
    local name = ASIDE .. #aside + 1
    redis.call(as_copy and 'COPY' or 'RENAME', key, name)
    aside[#aside + 1] = name
    undo_by(key, 'RENAME', name, key)
    if not as_copy then
      redis.call('SET', key, '')
    end
  end
  kept[key] = true
end

-- Notes when a key expires, which costs the same however much it holds.
local function keep_expiry(key)
  local deadline_ms = redis.call('PEXPIRETIME', key)
  if deadline_ms < 0 then
    undo_by(key, 'PERSIST', key)
  else
    undo_by(key, 'PEXPIREAT', key, deadline_ms)
  end
end

local function keep(key, change)
  if kept[key] then
    return
  elseif change == 'expiry' then
    keep_expiry(key)
  else
    keep_all(key, change == 'copy')
  end
end

-- Does a command that Redis has. What is wrong with it is its answer; any other error ends the unit.
local function call(name, key, ...)
  local answer = redis.pcall(name, key, ...)
  if type(answer) == 'table' and answer.err then
    if string.find(answer.err, '^WRONGTYPE') then
      return wrong_type(key)
    elseif not string.find(answer.err, '^ERR') then
      error(answer)
    end
  end
  return answer
end

-- Does a command of Redis, or several whose numbers are added up: each an array of how many keys it changes, its name,
-- these keys, and other words. `change` says how that is undone: 'copy', 'replace', 'expiry', or '' if nothing changes.
local function REDIS(change, ...)
  local sum = 0
  for _, command in ipairs({...}) do
    for index = 3, 2 + command[1] do
      keep(command[index], change)
    end
    local answer = call(unpack(command, 2))
    if type(answer) ~= 'number' then
      return answer
    end
    sum = sum + answer
  end
  return sum
end

--COMMANDS

local function undone(answer)
  for step = #undo, 1, -1 do
    pcall(undo[step]) -- one that its user may not do keeps none of the others
  end
  return answer
end

-- While a slot is being moved, keys that do not exist cannot be used beside those that do, and it would show too late.
if is_moving(ASIDE) then
  return {err = 'TRYAGAIN the slot is being moved'}
end
local answers = {1}
for index, command in ipairs(cmsgpack.unpack(ARGV[5])) do
  local name, arguments, refuses = unpack(command, 1, 3)
  token = FIRST_TOKEN + index - 1
  local done, answer = pcall(COMMANDS[name], unpack(arguments))
  if not done then
    return undone(type(answer) == 'table' and answer or {err = answer})
  end
  if popped_bytes > POPPED_MAX then
    answer = {err = 'TOOLARGE the values popped make the answer too long'}
  end
  if refuses and (type(answer) == 'table' and answer.err or tostring(answer) == refuses) then
    return undone({0, index - 1, answer})
  end
  answers[index + 1] = answer
end
for _, name in ipairs(aside) do
  redis.call('UNLINK', name)
end
for _, receipt in ipairs(receipts) do
  leave_receipts(RECEIPTS, unpack(receipt))
end
return answers
