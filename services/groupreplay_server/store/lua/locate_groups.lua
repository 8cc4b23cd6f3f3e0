-- Say where groups are.
-- Returns one of 'unknown', 'fresh', 'leased', 'replay', 'gone' for each.   Errors: UNKNOWN_RUN, UNKNOWN_TABLE
-- repeated: group_id
if not limits.fill then
  return no_such_table()
end
catch_up()
local places = {}
for i = 4, #ARGV do
  places[#places + 1] = locate(ARGV[i])
end
return places
