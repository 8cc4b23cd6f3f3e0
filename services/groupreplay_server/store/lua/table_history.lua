-- Read what the newest training steps were given, and how old and how important the groups are that wait.
-- Returns {times that steps were undone, newest step or '', summaries, fresh, replay}. A summary is what commit_lease
-- packs, numbers that may be fractions as text, '' where there is none. fresh and replay are {groups, looked at, their
-- staleness, their priority}, the last two as numbers in one text: of all groups, or of every n-th in their order.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local after_step = tonumber(ARGV[4]) -- only steps beyond
local limit = tonumber(ARGV[5])      -- the newest so many

local MOST_LOOKED = 512
local WHOLE_NUMBERS = 9 -- of a summary, before the fractions

if not limits.fill then
  return no_such_table()
end
catch_up()

local function read_summary(packed)
  local summary = cmsgpack.unpack(packed)
  for i = 1, #summary do
    if i > WHOLE_NUMBERS then
      summary[i] = summary[i] and string.format('%.9g', summary[i]) or ''
    end
  end
  return summary
end

-- range(first, last) returns ids by their rank.
local function some_of(groups, range)
  if groups <= MOST_LOOKED then
    return range(0, -1)
  end
  local ids = {}
  for i = 0, MOST_LOOKED - 1 do
    local rank = math.floor(i * groups / MOST_LOOKED)
    ids[i + 1] = range(rank, rank)[1]
  end
  return ids
end

local function look_among(groups, range)
  local ids, ages, priorities = some_of(groups, range), {}, {}
  each_group(ids, function(id, fact)
    ages[#ages + 1] = string.format('%d', staleness(fact))
    priorities[#priorities + 1] = string.format('%.9g', read_mark(id).priority or fact.priority)
  end)
  return { groups, #ids, table.concat(ages, ' '), table.concat(priorities, ' ') }
end

local summaries = redis.call('ZRANGE', history, '+inf', '(' .. string.format('%.0f', after_step), 'BYSCORE', 'REV',
  'LIMIT', 0, limit)
for i, packed in ipairs(summaries) do
  summaries[i] = read_summary(packed)
end
local newest = redis.call('ZRANGE', history, -1, -1, 'WITHSCORES')[2]
return {
  tonumber(redis.call('HGET', state, 'steps_undone') or 0), newest or '', summaries,
  look_among(redis.call('ZCARD', fresh), function(first, last)
    return redis.call('ZRANGE', fresh, first, last)
  end),
  look_among(redis.call('ZCARD', recency), function(first, last)
    return redis.call('ZRANGE', recency, first, last)
  end),
}
