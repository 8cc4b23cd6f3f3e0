-- Move a run's policy clock back to an older checkpoint. Its tables follow when they are next looked at: groups of
-- the versions that are undone leave, and steps after `step` may be committed anew. The same rewind again changes
-- nothing.
-- Returns the policy's fields.   Errors: UNKNOWN_RUN, POLICY_VERSION_CONFLICT
local policy = KEYS[1]              -- hash  version, weights_uri, weights_sha256, label, published_at_ms, rewinds
local labels = KEYS[2]              -- hash  label -> version
local now_ms = tonumber(ARGV[1])    -- wall clock of the caller
local run = ARGV[2]
local version = tonumber(ARGV[3])
local weights_uri = ARGV[4]
local weights_sha256 = ARGV[5]
local label = ARGV[6]               -- what inference engines call these weights
local step = tonumber(ARGV[7])      -- last training step that stays
local rewind_id = ARGV[8]           -- chosen by the caller, so a retry is safe

local current = redis.call('HMGET', policy, 'version', 'rewind_id', 'rewinds')
if not current[1] then
  return redis.error_reply(string.format('UNKNOWN_RUN there is no run %s; create a table in it first', run))
elseif current[2] == rewind_id then
  return redis.call('HGETALL', policy)
elseif version > tonumber(current[1]) then
  return redis.error_reply(string.format('POLICY_VERSION_CONFLICT run %s stands at policy version %d, it cannot go '
    .. 'back to %d; AdvancePolicy goes forward', run, tonumber(current[1]), version))
end
local rewinds = tonumber(current[3] or 0) + 1
redis.call('HSET', policy, 'version', version, 'weights_uri', weights_uri, 'weights_sha256', weights_sha256,
  'label', label, 'published_at_ms', now_ms, 'rewinds', rewinds, 'rewind_id', rewind_id,
  'step_of_rewind:' .. rewinds, step, 'version_of_rewind:' .. rewinds, version)
local known = redis.call('HGETALL', labels)
for i = 1, #known, 2 do
  if tonumber(known[i + 1]) >= version then
    redis.call('HDEL', labels, known[i])
  end
end
redis.call('HSET', labels, label, version)
redis.call('PUBLISH', 'gr1:wake', run .. ' policy ' .. version)
return redis.call('HGETALL', policy)
