-- Move a run's policy clock forward. The version it already stands at, with the same weights, changes nothing.
-- Version 0 may name its weights once.
-- Returns the policy's fields.   Errors: UNKNOWN_RUN, POLICY_VERSION_CONFLICT
local policy = KEYS[1]              -- hash  version, weights_uri, weights_sha256, label, published_at_ms
local labels = KEYS[2]              -- hash  label -> version
local now_ms = tonumber(ARGV[1])    -- wall clock of the caller
local run = ARGV[2]
local version = tonumber(ARGV[3])
local weights_uri = ARGV[4]
local weights_sha256 = ARGV[5]
local label = ARGV[6]               -- what inference engines call these weights

local current = redis.call('HMGET', policy, 'version', 'weights_uri', 'weights_sha256')
if not current[1] then
  return redis.error_reply(string.format('UNKNOWN_RUN there is no run %s; create a table in it first', run))
end
local current_version = tonumber(current[1])
local same_weights = (current[2] or '') == weights_uri and (current[3] or '') == weights_sha256
local unnamed = current_version == 0 and (current[2] or '') == ''
if version < current_version or (version == current_version and not same_weights and not unnamed) then
  return redis.error_reply(string.format("POLICY_VERSION_CONFLICT run %s stands at policy version %d (weights '%s'), "
    .. "version %d (weights '%s') cannot follow; resume the trainer from its newest checkpoint, or go back with "
    .. "RewindPolicy", run, current_version, current[2] or '', version, weights_uri))
end
local labelled = tonumber(redis.call('HGET', labels, label) or nil)
if labelled and labelled ~= version then
  return redis.error_reply(string.format("POLICY_VERSION_CONFLICT run %s: label '%s' already names policy version %d, "
    .. "not %d; labels are unique, pass another", run, label, labelled, version))
end
if version > current_version or unnamed then
  redis.call('HSET', policy, 'version', version, 'weights_uri', weights_uri, 'weights_sha256', weights_sha256,
    'label', label, 'published_at_ms', now_ms)
  redis.call('HSET', labels, label, version)
  redis.call('PUBLISH', 'gr1:wake', run .. ' policy ' .. version)
end
return redis.call('HGETALL', policy)
