-- List groups of one place, a page at a time, without taking them: fresh ones latest arrival first, replay ones newest
-- policy version first, leased ones in no order. Looks at a bounded number of groups, so a page may hold few or none.
-- Returns {groups, position, id}: where to go on, '' at the end. Each group is {header, kept, effective, staleness,
-- times_sampled, redeliveries, inserted_ms, priority, kl or '', ess or '', lease_id or ''}.
-- Errors: UNKNOWN_RUN, UNKNOWN_TABLE
local place = ARGV[4]                -- 'fresh', 'leased' or 'replay'
local after = ARGV[5]                -- position of an earlier page; '' = from the start
local after_id = ARGV[6]             -- and its id
local limit = tonumber(ARGV[7])      -- groups in the page
local most_bytes = tonumber(ARGV[8]) -- the page ends once its headers are so large
local task = ARGV[9]                 -- '=' and the task; '' = any
local prompt_id = ARGV[10]           -- '' = any
local effective = ARGV[11]           -- '1', '0', or '' = any
local oldest = tonumber(ARGV[12])    -- range of the groups' oldest policy version
local newest = tonumber(ARGV[13])

local MOST_LOOKED = 2048
local OF_VERSION = 4294967296

if not limits.fill then
  return no_such_table()
end
catch_up()

local function is_wanted(fact)
  return (task == '' or task == '=' .. fact.task) and (prompt_id == '' or prompt_id == fact.prompt_id)
    and (effective == '' or (effective == '1') == fact.effective)
    and fact.version_min >= oldest and fact.version_min <= newest
end

local function digits(value)
  return value and string.format('%.17g', value) or ''
end

local function describe_group(id, fact, header)
  local mark = read_mark(id)
  return {
    header, fact.payload_ref ~= '' and 1 or 0, fact.effective and 1 or 0, staleness(fact),
    tonumber(redis.call('HGET', uses, id) or 0), tonumber(redis.call('HGET', returns, id) or 0), fact.inserted_ms,
    digits(mark.priority or fact.priority), digits(mark.kl), digits(mark.ess), redis.call('HGET', leased, id) or '',
  }
end

-- Ids after a position, the position of each, and that of the next page; '' = there is none.
local function sorted_page(flat)
  local ids, positions = {}, {}
  for i = 1, #flat, 2 do
    ids[#ids + 1], positions[#positions + 1] = flat[i], flat[i + 1]
  end
  return ids, positions, #ids == PAGE and positions[PAGE] or ''
end

-- The same of a hash. A position stands for some groups: those up to after_id were in the page before.
local function hashed_page(position)
  local reply = redis.call('HSCAN', leased, position, 'COUNT', PAGE)
  local ids, positions = {}, {}
  for i = 1, #reply[2], 2 do
    if reply[2][i] > after_id then
      ids[#ids + 1], positions[#positions + 1] = reply[2][i], position
    end
  end
  table.sort(ids)
  after_id = ''
  return ids, positions, reply[1] ~= '0' and reply[1] or ''
end

local function read_page(position)
  if place == 'leased' then
    return hashed_page(position == '' and '0' or position)
  elseif place == 'fresh' then
    local high = position == '' and '+inf' or '(' .. position
    return sorted_page(redis.call('ZRANGE', fresh, high, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, PAGE, 'WITHSCORES'))
  end
  local high = position == '' and string.format('%.0f', (newest + 1) * OF_VERSION) or position
  local low = string.format('%.0f', oldest * OF_VERSION)
  return sorted_page(redis.call('ZRANGE', recency, '(' .. high, low, 'BYSCORE', 'REV', 'LIMIT', 0, PAGE, 'WITHSCORES'))
end

local found, bytes, looked, position = {}, 0, 0, after
repeat
  local ids, positions, following = read_page(position)
  for i, fact in ipairs(read_facts(ids)) do
    if is_wanted(fact) then
      local header = redis.call('HGET', headers, ids[i])
      found[#found + 1] = describe_group(ids[i], fact, header)
      bytes = bytes + #header
      if #found == limit or bytes >= most_bytes then
        return { found, positions[i], place == 'leased' and ids[i] or '' }
      end
    end
  end
  looked, position = looked + #ids, following
until position == '' or looked >= MOST_LOOKED
return { found, position, '' }
