-- Take note of what callers found out about groups; an empty value leaves what was known.
-- Returns for each group 1, or 0 where the table does not hold it.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
-- repeated: group_id, priority, kl, ess, ratios_ref, ratios_bytes
if not limits.fill then
  return no_such_table()
end
catch_up()
local found, noted = {}, {}
for i = 4, #ARGV, 6 do
  local place = locate(ARGV[i])
  local fact = place ~= 'gone' and read_fact(ARGV[i])
  keep_ratios(ARGV[i], fact or nil, ARGV[i + 4], tonumber(ARGV[i + 5]), version, -1)
  if fact then
    noted[#noted + 1] = { id = ARGV[i], priority = ARGV[i + 1], kl = ARGV[i + 2], ess = ARGV[i + 3], fact = fact }
  end
  found[#found + 1] = fact and 1 or 0
end
set_marks(noted)
wake('replay', redis.call('ZCARD', recency)) -- what max_kl held back may be drawn now
return found
