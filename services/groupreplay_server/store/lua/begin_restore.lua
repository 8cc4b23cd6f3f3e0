-- Begin to restore a table under a name that no table has; what an earlier, unfinished restore left there goes first.
-- Returns 1, or 0 where this very restore has been finished.
-- Errors: TABLE_EXISTS, FUTURE_POLICY_VERSION, QUOTA_EXCEEDED
-- repeated: name, value
local restore_id = ARGV[4]             -- chosen by the caller, so a retry is safe
local attempt = ARGV[5]                -- names this try of it; an earlier one ends
local until_ms = tonumber(ARGV[6])     -- when it is undone, unless groups come
local newest = tonumber(ARGV[7])       -- newest policy version of any group
local reference = tonumber(ARGV[8])    -- policy version at the snapshot
local groups = tonumber(ARGV[9])
local bytes = tonumber(ARGV[10])       -- of payload

if limits.fill and redis.call('HGET', state, 'restore_id') == restore_id then
  return 0
elseif limits.fill then
  return fail('TABLE_EXISTS', 'table %s exists, and a restore makes a new one; restore under another name', topic)
elseif redis.call('HGET', state, 'restore_id') ~= restore_id and is_being_restored() then
  return fail('TABLE_EXISTS', 'table %s is being restored by another call; take another name', topic)
elseif version and newest > version then
  return fail('FUTURE_POLICY_VERSION', 'run %s stands at policy version %d, and the snapshot for %s has groups of '
    .. 'version %d; restore into a new run, which takes the clock of the snapshot, or advance the policy first',
    string.match(topic, '^[^/]+'), version, topic, newest)
end
local most_groups, most_bytes = unpack(redis.call('HMGET', quota, 'max_groups', 'max_bytes'))
local has_groups, has_bytes = unpack(redis.call('HMGET', usage, 'groups', 'bytes'))
if (most_groups and tonumber(has_groups or 0) + groups > tonumber(most_groups))
  or (most_bytes and tonumber(has_bytes or 0) + bytes > tonumber(most_bytes)) then
  return fail('QUOTA_EXCEEDED', 'the %d groups (%.0f bytes) of the snapshot for table %s would exceed the quota of its '
    .. 'run (max_groups %s, max_bytes %s); reset tables that are done with, or raise it by SetQuota', groups, bytes,
    topic, most_groups or 'unlimited', most_bytes or 'unlimited')
end

undo_restore()
for i = 11, #ARGV, 2 do
  if ARGV[i] ~= 'fill' then
    redis.call('HSET', config, ARGV[i], ARGV[i + 1])
  end
end
redis.call('HSET', state, 'restore_id', restore_id, 'restoring', attempt, 'restoring_until_ms', until_ms, 'newest',
  newest, 'rewinds', redis.call('HGET', policy, 'rewinds') or 0, 'clock_now', 0, 'clock_reference', reference)
return 1
