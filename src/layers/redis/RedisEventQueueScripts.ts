/**
 * The scripts of `RedisEventQueueStore`. Time is that of Redis.
 *
 * What a queue is made of, all in one hash slot:
 *
 * - `jobs`, a hash: id to record, `<publishedAt> <timeout> <maxRetries> <keepId> <payload>`.
 *   Every living job is in it, and in one of the next three.
 * - `ready`, a list: ids, first come first.
 * - `delayed`, a sorted set: ids by when they are due (Unix ms).
 * - `held`, a sorted set: ids that workers have, by the end of the lease (Unix ms).
 * - `claims`, a hash: id to `<attempts> <take>` for jobs that were ever taken, with a `+` once the attempt has
 *   started and counts; `-` stands for the take while nobody has the job.
 * - `errors`, a hash: id to the JSON `[first, last]`.
 * - `ended`, a sorted set: ids that still deduplicate, by until when (Unix ms).
 * - `dead`, a sorted set: ids of dead letters in the order of their deaths.
 * - `letters`, a hash: id to the JSON `[record, attempts, reason, first error, last error, diedAt]`.
 * - `idle`, a sorted set: workers that have found less than they asked for, longest first, each with the name
 *   of the take that found it: `<take>! <how many more> <lease> <channel>`.
 * - `undone`, a sorted set: takes that were undone, by when (Unix ms). One that arrives later takes nothing.
 *
 * What is published while workers are idle is given to them at once, as if their takes had found it, in a message
 * to their channels: the JSON `[<take>!, id, record, id, record, ...]`. Whatever else comes wakes them, with a message
 * that gives nothing, to take again.
 */
import * as RedisScript from "./RedisScript.ts"

/** The keys of a queue, in the order in which every script expects them. */
export const keys = (base: string): ReadonlyArray<string> =>
  ["jobs", "ready", "delayed", "held", "claims", "errors", "ended", "dead", "letters", "idle", "undone"].map(
    (name) => `${base}:${name}`
  )

/** Where the dead letters are among them. */
export const lettersKey = 8

/** How long a worker counts as idle; it takes again before that. */
const idleMillis = 60_000

/**
 * How long a worker is given jobs after it became idle: it takes again every few seconds, unless it was lost without a
 * word.
 */
const givenMillis = 10_000

/**
 * How much is given in one message, in bytes. Redis ends the connection of a subscriber that has too much before it,
 * and with it whatever else its process hears.
 */
const mostGiven = 100_000

/** How long after a take was undone what the network kept of it may arrive. */
const lateMillis = 10 * 60_000

/** How many ids that deduplicate no more are forgotten by one publish. */
const mostForgotten = 500

/** How many jobs come back from lost workers, or from their delay, in one take. */
const mostDue = 500

const prelude = `
local jobs, ready, delayed, held, claims, errors, ended, dead, letters, idle, undone = unpack(KEYS)
local call = redis.call
local time = call('time')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function int(n) return string.format('%.0f', n) end
local function tell(worker)
  call('publish', string.match(worker, '[^ ]+$'), '["' .. string.match(worker, '^[^ ]+') .. '"]')
end
local function wake()
  for _, worker in ipairs(call('zrange', idle, 0, -1)) do tell(worker) end
  call('del', idle)
end
`

/** Undoes the takes that are named from an argument on: the jobs go back to the front as they were. */
const undo = `
local function undo(from)
  if #ARGV < from then return end
  local names = {}
  -- First, for a Redis that is full: see update.
  call('zremrangebyscore', undone, '-inf', int(now - ${lateMillis}))
  for i = from, #ARGV do
    names[ARGV[i]] = true
    if string.sub(ARGV[i], -1) ~= '!' then call('zadd', undone, int(now), ARGV[i]) end
  end
  call('pexpire', undone, ${lateMillis})
  for _, worker in ipairs(call('zrange', idle, 0, -1)) do
    local take = string.match(worker, '^[^ ]+')
    if names[take] then
      -- It found nothing to give.
      call('zrem', idle, worker)
      names[take] = nil
    end
  end
  if not next(names) then return end
  local ids, found = call('zrange', held, 0, -1), false
  for i = #ids, 1, -1 do
    local attempts, take, started = string.match(call('hget', claims, ids[i]) or '', '^(%d+) ([^+]*)(+?)$')
    if names[take] then
      found = true
      call('zrem', held, ids[i])
      call('hset', claims, ids[i], int(attempts - #started) .. ' -')
      call('lpush', ready, ids[i])
    end
  end
  if found then wake() end
end
`

/**
 * ARGV: whether this is a Redis Cluster (`1`), then id, delay (ms) and record without its `publishedAt` of each job.
 * Returns a `1` for each that was taken in, a `0` for each whose id is known.
 *
 * A message that nobody receives was for a worker that is lost; a Redis Cluster cannot tell, so there workers are only
 * woken.
 */
export const publish = RedisScript.make(`${prelude}
local published = int(now) .. ' '
local remembers = call('exists', ended) == 1
local function remembered(id)
  local till = remembers and call('zscore', ended, id)
  return till and tonumber(till) > now
end
local fresh, records, results, later = {}, {}, {}, false
for i = 2, #ARGV, 3 do
  local id, record = ARGV[i], published .. ARGV[i + 2]
  if remembered(id) or call('hsetnx', jobs, id, record) == 0 then
    results[#results + 1] = '0'
  else
    results[#results + 1] = '1'
    if ARGV[i + 1] == '0' then
      fresh[#fresh + 1] = id
      records[#records + 1] = record
    else
      call('zadd', delayed, int(now + ARGV[i + 1]), id)
      -- Who is idle knows of the first, and asks again when it is due.
      later = later or call('zrank', delayed, id) == 0
    end
  end
end
local given = 0
while ARGV[1] == '0' and given < #fresh and #records[given + 1] <= ${mostGiven} do
  local worker, since = unpack(call('zpopmin', idle))
  if not worker then break end
  if tonumber(since) < (now - ${givenMillis}) * 1000 then
    tell(worker)
  else
    local take, wanted, lease, channel = string.match(worker, '^([^ ]+) (%d+) (%d+) (.*)$')
    local message, claimed, leases, ends, size = {take}, {}, {}, int(now + lease), 0
    for i = given + 1, math.min(given + wanted, #fresh) do
      size = size + #records[i]
      if size > ${mostGiven} then break end
      local n = #message
      message[n + 1], message[n + 2] = fresh[i], records[i]
      claimed[n], claimed[n + 1] = fresh[i], '1 ' .. take .. '+'
      leases[n], leases[n + 1] = ends, fresh[i]
    end
    if call('publish', channel, cjson.encode(message)) > 0 then
      call('hset', claims, unpack(claimed))
      call('zadd', held, unpack(leases))
      given = given + #claimed / 2
    end
  end
end
if given < #fresh then
  call('rpush', ready, unpack(fresh, given + 1))
  later = true
end
if later then wake() end
-- Not before: a script whose first write gives memory back may write all it wants to a Redis that is full.
if remembers then
  local over = call('zrangebyscore', ended, '-inf', int(now), 'limit', 0, ${mostForgotten})
  if #over > 0 then call('zrem', ended, unpack(over)) end
end
return table.concat(results)`)

/**
 * Gives jobs to a worker, which starts the first of them at once. Before that it undoes takes of this worker whose
 * answers got lost, and what was given in their names.
 *
 * ARGV: how many, lease (ms), name of the take, how many are started, channel of the worker, for how long yet jobs whose
 * lease has ended are left to their workers (ms), and the names of the takes to undo.
 * Returns the milliseconds until more may be there (`-1` when nothing is known to come), then id, record and
 * history of each job: `''`, or `<attempts before> <last error>`. When it found fewer than are to be started,
 * the worker is idle.
 */
export const take = RedisScript.make(`${prelude}
${undo}
if call('zscore', undone, ARGV[3]) then return {-1} end
undo(7)
local patience = tonumber(ARGV[6])
local lost = patience > 0 and {} or call('zrangebyscore', held, '-inf', int(now), 'limit', 0, ${mostDue})
if #lost > 0 then
  call('zrem', held, unpack(lost))
  local had = call('hmget', claims, unpack(lost))
  for i = #lost, 1, -1 do
    call('lpush', ready, lost[i])
    call('hset', claims, lost[i], string.match(had[i] or '0', '^%d+') .. ' -')
  end
end
local due = call('zrangebyscore', delayed, '-inf', int(now), 'limit', 0, ${mostDue})
if #due > 0 then
  call('zrem', delayed, unpack(due))
  call('rpush', ready, unpack(due))
end
local ids = call('lpop', ready, ARGV[1]) or {}
local reply = {-1}
if #ids > 0 then
  local records, had = call('hmget', jobs, unpack(ids)), call('hmget', claims, unpack(ids))
  local ends, starts, mine, leases = int(now + ARGV[2]), 2 * ARGV[4], {}, {}
  for i, id in ipairs(ids) do
    if records[i] then
      local attempts, history = '0', ''
      if had[i] then
        attempts = string.match(had[i], '^%d+')
        local texts = call('hget', errors, id)
        history = attempts .. (texts and ' ' .. cjson.decode(texts)[2] or '')
      end
      local n = #mine
      local claim = attempts .. ' ' .. ARGV[3]
      if n < starts then claim = int(attempts + 1) .. ' ' .. ARGV[3] .. '+' end
      mine[n + 1], mine[n + 2] = id, claim
      leases[n + 1], leases[n + 2] = ends, id
      n = #reply
      reply[n + 1], reply[n + 2], reply[n + 3] = id, records[i], history
    end
  end
  if #mine > 0 then
    call('hset', claims, unpack(mine))
    call('zadd', held, unpack(leases))
  end
end
if #ids < tonumber(ARGV[1]) then
  local more = ARGV[4] - #ids
  if more > 0 then
    call('zadd', idle, int(time[1] * 1000000 + time[2]), ARGV[3] .. '! ' .. int(more) .. ' ' .. ARGV[2] .. ' ' .. ARGV[5])
    call('pexpire', idle, ${idleMillis})
  end
  local first, lease = call('zrange', delayed, 0, 0, 'withscores')[2], call('zrange', held, 0, 0, 'withscores')[2]
  local next = math.min(tonumber(first or math.huge), math.max(tonumber(lease or math.huge), now + patience))
  if next < math.huge then reply[1] = math.max(next - now, 0) end
end
return reply`)

/** Undoes takes of a worker that takes no more. ARGV: the names of the takes. */
export const abandon = RedisScript.make(
  `${prelude}
${undo}
undo(1)`,
  { retry: true }
)

/**
 * What workers do with the jobs that they have. What does not fit the claim is refused.
 *
 * ARGV: lease (ms), how many of each of the following, and then
 * - starts: id, claim before, claim after
 * - renewals: id, claim
 * - acknowledgements: id, claim, keepId (ms)
 * - the others: what, id, claim, delay (ms), keepId (ms), reason, error; where what is `return` (not started;
 *   to the front), `release` (the attempt does not count; to the front without delay), `retry` or `bury`.
 *
 * Returns a `1` for each that was accepted and a `0` for each that was refused, in order.
 */
export const update = RedisScript.make(`${prelude}
-- Redis lets a script go on that began with a write which needs no memory. When it is full, workers must go on: what
-- they end makes room.
call('zrem', held, '')
local lease = tonumber(ARGV[1])
local starts, renewals, acks, others = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local at, results = 6, {}
local function note(accepted) results[#results + 1] = accepted and '1' or '0' end
local function claimsOf(count, width)
  local ids = {}
  for i = 0, count - 1 do ids[i + 1] = ARGV[at + width * i] end
  return call('hmget', claims, unpack(ids))
end

if starts > 0 then
  local claimed, started = claimsOf(starts, 3), {}
  for i = 1, starts do
    local claim = claimed[i]
    if claim == ARGV[at + 1] then
      started[#started + 1] = ARGV[at]
      started[#started + 1] = ARGV[at + 2]
      note(true)
    else
      note(claim == ARGV[at + 2])
    end
    at = at + 3
  end
  if #started > 0 then call('hset', claims, unpack(started)) end
end

if renewals > 0 then
  local claimed, leases, ends = claimsOf(renewals, 2), {}, int(now + lease)
  for i = 1, renewals do
    local mine = claimed[i] == ARGV[at + 1]
    if mine then
      leases[#leases + 1] = ends
      leases[#leases + 1] = ARGV[at]
    end
    note(mine)
    at = at + 2
  end
  if #leases > 0 then call('zadd', held, 'xx', unpack(leases)) end
end

if acks > 0 then
  local claimed, done = claimsOf(acks, 3), {}
  for i = 1, acks do
    local mine = claimed[i] == ARGV[at + 1]
    if mine then
      done[#done + 1] = ARGV[at]
      if ARGV[at + 2] ~= '0' then call('zadd', ended, int(now + ARGV[at + 2]), ARGV[at]) end
    end
    note(mine)
    at = at + 3
  end
  if #done > 0 then
    call('hdel', jobs, unpack(done))
    call('hdel', claims, unpack(done))
    call('zrem', held, unpack(done))
    if call('exists', errors) == 1 then call('hdel', errors, unpack(done)) end
  end
end

local function errorsOf(id, text)
  local texts = call('hget', errors, id)
  texts = texts and cjson.decode(texts) or {text, text}
  return texts[1], text
end

local offered = false
local function offer(id, delay, first)
  if delay ~= '0' then
    call('zadd', delayed, int(now + delay), id)
    offered = offered or call('zrank', delayed, id) == 0
  else
    offered = true
    call(first and 'lpush' or 'rpush', ready, id)
  end
end

for i = 1, others do
  local what, id, claim, delay, keepId, reason, text = unpack(ARGV, at, at + 6)
  at = at + 7
  local mine = call('hget', claims, id) == claim
  note(mine)
  if mine then
    call('zrem', held, id)
    local attempts = tonumber(string.match(claim, '^%d+'))
    if what == 'bury' then
      local first, last = errorsOf(id, text)
      local order = call('zrevrange', dead, 0, 0, 'withscores')[2]
      local record = call('hget', jobs, id)
      if record then
        call('zadd', dead, int(math.max(time[1] * 1000000 + time[2], tonumber(order or 0) + 1)), id)
        call('hset', letters, id, cjson.encode({record, attempts, reason, first, last, int(now)}))
      end
      call('hdel', jobs, id)
      call('hdel', claims, id)
      call('hdel', errors, id)
      if keepId ~= '0' then call('zadd', ended, int(now + keepId), id) end
    else
      if what == 'release' then attempts = attempts - 1 end
      if attempts > 0 then
        call('hset', claims, id, int(attempts) .. ' -')
      else
        call('hdel', claims, id)
      end
      if what == 'retry' then call('hset', errors, id, cjson.encode({errorsOf(id, text)})) end
      offer(id, delay, what ~= 'retry')
    end
  end
end
if offered then wake() end
return table.concat(results)`)

/** Returns how many are ready, delayed, with workers, and dead. */
export const depth = RedisScript.make(
  `${prelude}
local lost, due = call('zcount', held, '-inf', int(now)), call('zcount', delayed, '-inf', int(now))
return {
  call('llen', ready) + lost + due,
  call('zcard', delayed) - due,
  call('zcard', held) - lost,
  call('zcard', dead)
}`,
  { retry: true }
)

/** ARGV: offset, limit. Returns id and letter of each, oldest first. */
export const deadLetters = RedisScript.make(
  `${prelude}
local ids = call('zrange', dead, ARGV[1], int(ARGV[1] + ARGV[2] - 1))
local reply = {}
if #ids > 0 then
  local found = call('hmget', letters, unpack(ids))
  for i, id in ipairs(ids) do
    if found[i] then
      reply[#reply + 1] = id
      reply[#reply + 1] = found[i]
    end
  end
end
return reply`,
  { retry: true }
)

/** Returns the order of the last death, `''` when nobody is dead. */
export const lastDeath = RedisScript.make(
  `${prelude}
return call('zrevrange', dead, 0, 0, 'withscores')[2] or ''`,
  { retry: true }
)

/**
 * ARGV: `redrive` or `discard`, then either `ids` and the ids, or `upTo`, the order of the last
 * death that is meant, how many to look at, and how many to pass over.
 * Returns how many it looked at, and how many it redrove or discarded. What lives under its id again is not redriven.
 */
export const empty = RedisScript.make(
  `${prelude}
local ids
if ARGV[2] == 'ids' then
  ids = {unpack(ARGV, 3)}
else
  ids = call('zrangebyscore', dead, '-inf', ARGV[3], 'limit', ARGV[5], ARGV[4])
end
local done, offered = {}, {}
for _, id in ipairs(ids) do
  local letter = call('hget', letters, id)
  if letter then
    if ARGV[1] == 'discard' then
      done[#done + 1] = id
    elseif call('hsetnx', jobs, id, cjson.decode(letter)[1]) == 1 then
      done[#done + 1] = id
      offered[#offered + 1] = id
    end
  end
end
if #done > 0 then
  call('hdel', letters, unpack(done))
  call('zrem', dead, unpack(done))
end
if #offered > 0 then
  call('rpush', ready, unpack(offered))
  wake()
end
return {#ids, #done}`,
  { retry: true }
)
