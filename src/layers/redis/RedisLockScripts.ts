/**
 * The scripts of `RedisLockStore`.
 *
 * Every one works on one lock, in one hash slot: `KEYS[1]` is its last grant, the
 * text `<fence> <end, Unix ms> <owner>`, or just the fence once it is released and
 * nobody waits, `KEYS[2]` the list of those who wait, first come first, and `KEYS[3]` the hash of
 * what they wait with: `<deadline, Unix ms> <lease, ms> <channel>`.
 *
 * Owners and waiters are known by the id of their request. Time is that of Redis.
 *
 * What is done when nobody else wants the lock comes first in a script, in as few
 * steps as possible: that is most of what Redis spends on locks.
 *
 * Redis that is full lets a script go on that began with a write which needs no memory: who has a lock must be able to
 * keep it, and to give it back. Hence a PEXPIRE first, also where nobody waits.
 */
import * as RedisScript from "./RedisScript.ts"

/** How long the last fence of a key is remembered, should the clock of Redis be set back. */
export const fenceMemoryMillis = 60 * 60_000

/**
 * A waiter that has not asked for this long is passed over. Whoever waits asks again
 * every few seconds.
 */
const waiterMillis = 10_000

/** ARGV: id, lease (ms), and both with the memory of the fence (ms). Returns the fence of a lock that is free. */
const acquireFree = `
local call = redis.call
local text = call('get', KEYS[1])
local released = text and tonumber(text)
if released or (not text and call('exists', KEYS[2]) == 0) then
  local time = call('time')
  local micros = time[1] * 1000000 + time[2]
  local fence = string.format('%.0f', math.max((released or 0) + 1, micros))
  call('set', KEYS[1], string.format('%s %.0f %s', fence, micros / 1000 + ARGV[2], ARGV[1]), 'px', ARGV[3])
  return fence
end
`

const prelude = `
local time = redis.call('time')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
local last, ends, owner = 0, 0, ''
local text = redis.call('get', KEYS[1])
if text then
  last, ends, owner = string.match(text, '^(%d+) ?(%d*) ?(.*)$')
  last, ends = tonumber(last), tonumber(ends) or 0
end
local function int(n) return string.format('%.0f', n) end
local function held() return owner ~= '' and ends > now end
local function put(fence, till, who)
  last, ends, owner = fence, till, who
  redis.call('set', KEYS[1], int(fence) .. ' ' .. int(till) .. ' ' .. who, 'px', int(math.max(till - now, 0) + ${fenceMemoryMillis}))
end
-- More than every fence before: by the clock, also after a flush.
local function nextFence() return math.max(last + 1, micros) end

-- The deadline, lease and channel of one who waits, if it still does.
local function waiterOf(id)
  local waiter = redis.call('hget', KEYS[3], id)
  if waiter then return string.match(waiter, '^(%d+) (%d+) (.*)$') end
end

-- Tells the first who waits and listens to ask again, as the lock may be free earlier than it knows.
local function tellNext(isCluster)
  local place = 0
  while true do
    local id = redis.call('lindex', KEYS[2], place)
    if not id then return end
    local _, _, channel = waiterOf(id)
    if channel and (redis.call('publish', channel, id) > 0 or isCluster == '1') then return end
    place = place + 1
  end
end

-- Grants the lock to the first waiter that is alive, and tells it, unless it is the one who asks.
-- On one server, one without a subscription has lost its process. A Redis Cluster cannot tell: there
-- the next one learns how long this grant lasts at the most. Returns whether there was one.
local function passOn(isCluster, asking)
  while true do
    local id = redis.call('lpop', KEYS[2])
    if not id then return false end
    local deadline, lease, channel = waiterOf(id)
    if deadline then
      redis.call('hdel', KEYS[3], id)
      local fence = nextFence()
      if id == asking or tonumber(deadline) > now and
        (redis.call('publish', channel, id .. ' ' .. int(fence)) > 0 or isCluster == '1') then
        put(fence, now + lease, id)
        if isCluster == '1' then tellNext(isCluster) end
        return true
      end
    end
  end
end
`

/**
 * ARGV: id, lease (ms), lease and memory of the fence (ms), whether this is a Redis Cluster (`1`), channel.
 * Returns the fence, or `{fence of the last grant, ms until it ends}` for one who waits.
 * Asking again does no harm: a waiter keeps its place, a holder starts its lease again.
 */
export const acquire = RedisScript.make(
  `${acquireFree}
${prelude}
local id, lease = ARGV[1], ARGV[2]
if held() then
  if owner == id then put(last, now + lease, id) end
elseif not passOn(ARGV[4], id) then
  redis.call('hdel', KEYS[3], id)
  put(nextFence(), now + lease, id)
end
if owner == id then return int(last) end
if redis.call('hset', KEYS[3], id, int(now + ${waiterMillis}) .. ' ' .. lease .. ' ' .. ARGV[5]) == 1 then
  redis.call('rpush', KEYS[2], id)
end
redis.call('pexpire', KEYS[2], ${2 * waiterMillis})
redis.call('pexpire', KEYS[3], ${2 * waiterMillis})
return {int(last), int(ends - now)}`,
  { retry: true }
)

/**
 * ARGV: id, lease (ms), lease and memory of the fence (ms), whether this is a Redis Cluster (`1`).
 * Returns the fence, or `''`; never waits.
 */
export const tryAcquire = RedisScript.make(
  `${acquireFree}
${prelude}
local id, lease = ARGV[1], ARGV[2]
if held() then
  if owner == id then put(last, now + lease, id) end
elseif not passOn(ARGV[4]) then
  put(nextFence(), now + lease, id)
end
return owner == id and int(last) or ''`,
  { retry: true }
)

/**
 * ARGV: id, lease (ms), whether this is a Redis Cluster (`1`). Returns 1, or 0 when the grant is over.
 * When it now ends earlier, the first who waits and listens is told to ask again.
 */
export const renew = RedisScript.make(
  `${prelude}
if not held() or owner ~= ARGV[1] then return 0 end
redis.call('pexpire', KEYS[1], ${fenceMemoryMillis})
local before = ends
put(last, now + ARGV[2], owner)
if ends < before then tellNext(ARGV[3]) end
return 1`,
  { retry: true }
)

/**
 * ARGV: id, whether this is a Redis Cluster (`1`), fence or `0` when it is not known. Ends a request, whether it
 * waits or was granted; the lock goes to the next.
 */
export const release = RedisScript.make(
  `
local id = ARGV[1]
local granted = redis.call('get', KEYS[1])
if granted and ARGV[3] ~= '0' and string.sub(granted, -#id) == id and redis.call('pexpire', KEYS[2], ${2 * waiterMillis}) == 0 then
  redis.call('set', KEYS[1], ARGV[3], 'px', ${fenceMemoryMillis})
  return
end
${prelude}
if redis.call('hdel', KEYS[3], id) == 1 then redis.call('lrem', KEYS[2], 1, id) end
if owner == id and not passOn(ARGV[2]) then redis.call('set', KEYS[1], int(last), 'px', ${fenceMemoryMillis}) end`,
  { retry: true }
)

/** Returns the fence, the ms until it ends, the owner and those who wait, first come first; nothing when nobody holds it. */
export const look = RedisScript.make(
  `${prelude}
if not held() then return nil end
local waiting = {}
for _, id in ipairs(redis.call('lrange', KEYS[2], 0, -1)) do
  if waiterOf(id) then waiting[#waiting + 1] = id end
end
return {int(last), int(ends - now), owner, waiting}`,
  { retry: true }
)
