-- Drop a partial group that cannot be inserted.
-- Returns 1 if it was open.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local group_id = ARGV[4]

if not limits.fill then
  return no_such_table()
end
local partial = read_partial(group_id)
if partial then
  drop_partial(group_id, partial)
end
return partial and 1 or 0
