-- Read the batch of a live lease.
-- Returns what lease_reply (leases.lua) does.   Errors: UNKNOWN_LEASE, LEASE_EXPIRED, STEP_CONFLICT
local lease_id = ARGV[4]

catch_up()
local lease, refusal = live_lease(lease_id)
if not lease then
  return refusal
end
return lease_reply(lease)
