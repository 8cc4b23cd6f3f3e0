-- Undo a restore that will not be finished.
-- Returns 1 where none is unfinished any more, 0 where another has time left.
local attempt = ARGV[4] -- '' = any whose time is up

if limits.fill then
  return 1
elseif attempt ~= '' and is_attempt(attempt) then
  undo_restore()
end
return is_being_restored() and 0 or 1
