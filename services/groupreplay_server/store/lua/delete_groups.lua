-- Remove groups that are fresh or in replay; those in a lease as fresh stay, since somebody trains on them.
-- Returns for each group 1 where it left, else 0.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
-- repeated: group_id
if not limits.fill then
  return no_such_table()
end
catch_up()
local removed = {}
for i = 4, #ARGV do
  local id = ARGV[i]
  local here = redis.call('ZSCORE', fresh, id) or redis.call('ZSCORE', recency, id)
  if here then
    discard(id, read_fact(id), 'deleted')
  end
  removed[#removed + 1] = here and 1 or 0
end
wake('demand', 0)
return removed
