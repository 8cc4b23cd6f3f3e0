-- Take note that a producer is there, and of what it says it does.
-- Returns 1.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local producer_id = ARGV[4]
local interval_s = tonumber(ARGV[5]) -- seconds until its next beat is due
local status = ARGV[6]               -- for people

if not limits.fill then
  return no_such_table()
end
hear(producer_id, { interval_s = interval_s, status = status })
return 1
