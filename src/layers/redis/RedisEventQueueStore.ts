/**
 * Queues on Redis.
 *
 * - A job is published, taken, settled and buried by scripts: each is done
 *   entirely or not at all.
 * - What Redis has acknowledged is as durable as Redis is: with its append-only file
 *   off, a restart loses jobs, and with `appendfsync everysec`, the default, a crash of
 *   the machine loses up to a second. A warning tells when the file is off, or when Redis may
 *   evict jobs for want of memory.
 * - Jobs are first come, first served, as far as several workers can be.
 * - A publish that was on its way when the connection was lost fails, and may have
 *   arrived. Publishing again with the same `id` does no harm.
 * - When Redis was away, nobody could renew: for half a lease after that, workers leave the jobs of others alone whose
 *   lease has ended, so that whoever lives renews it, and goes on.
 * - Handlers get an attempt's number before Redis has confirmed that it counts; on a Redis Cluster after.
 *
 * A waiting job takes about 400 bytes more than its payload. All of one queue is on one node of a
 * Redis Cluster.
 *
 * @since 0.2.0
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { type DeadJob, type DeathReason, EventQueueStore } from "../../services/EventQueueStore.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import * as Timers from "../../services/internal/Timers.ts"
import { Payload } from "../../services/Payload.ts"
import type { Unavailable } from "../../services/Reason.ts"
import * as perTurn from "./perTurn.ts"
import { RedisConnection } from "./RedisConnection.ts"
import { warnUnlessDurable } from "./RedisDurability.ts"
import * as Scripts from "./RedisEventQueueScripts.ts"
import { RedisQueueWorker, readRecord } from "./RedisQueueWorker.ts"
import { decodeKey, encodeKey, millis } from "./wire.ts"

/** How many jobs are listed, redriven or discarded by one script. */
const mostPerScript = 500
/** How many are published by one: few enough that Redis begins on them while the rest of a crowd is being collected. */
const mostPublished = 32

/** A job to publish, as the script wants it, and who waits for the answer. */
interface Publication {
  readonly id: string
  readonly delay: number
  readonly record: string
  readonly resume: (result: Exit.Exit<boolean, Unavailable>) => void
}

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<EventQueueStore["Service"], never, RedisConnection | Scope.Scope> = Effect.gen(
  function* () {
    const redis = yield* RedisConnection
    const timers = yield* Timers.make
    const nonce = SecureRandom.uuidV4Unsafe().replaceAll("-", "").slice(0, 12)
    let workers = 0
    yield* Effect.forkScoped(warnUnlessDurable(redis))

    /** What is known of a channel: where it is, and what is published to it in this turn. */
    const queues = new Map<string, ReturnType<typeof makeQueue>>()
    const queueOf = (channel: string) => getOrMake(queues, channel, () => makeQueue(channel))
    const makeQueue = (channel: string) => {
      // Between braces that hold nothing Redis sees no hash tag; `%` is escaped already.
      const keys = Scripts.keys(`cohort:{${encodeKey(channel).replace(/^}/, "%7D")}}`)
      const publications = perTurn.make<Publication>(
        (publications) => {
          const args: Array<string | number> = [redis.isCluster ? 1 : 0]
          for (const { delay, id, record } of publications) args.push(id, delay, record)
          redis.requestRun<string>(Scripts.publish, keys, args, (result) => {
            for (const [i, { resume }] of publications.entries()) {
              resume(
                result._tag === "Success"
                  ? Exit.succeed(result.value.charCodeAt(i) === 49)
                  : Exit.failCause(result.cause)
              )
            }
          })
        },
        mostPublished,
        () => void redis.flush()
      )
      return { keys, publications }
    }

    /** Redrives or discards dead letters. */
    const empty = (channel: string, what: "redrive" | "discard", ids: ReadonlyArray<string> | "all") =>
      Effect.gen(function* () {
        const { keys } = queueOf(channel)
        let count = 0
        if (ids !== "all") {
          const encoded = [...new Set(ids)].map(encodeKey)
          for (let i = 0; i < encoded.length; i += mostPerScript) {
            const [, done] = yield* redis.run<[number, number]>(Scripts.empty, keys, [
              what,
              "ids",
              ...encoded.slice(i, i + mostPerScript)
            ])
            count += done
          }
          return count
        }
        // Those that are dead now: what is redriven may die again meanwhile.
        const last = yield* redis.run<string>(Scripts.lastDeath, keys, [])
        if (last === "") return 0
        let left = 0
        while (true) {
          const [seen, done] = yield* redis.run<[number, number]>(Scripts.empty, keys, [
            what,
            "upTo",
            last,
            mostPerScript,
            left
          ])
          count += done
          left += seen - done
          if (seen < mostPerScript) return count
        }
      })

    return EventQueueStore.of({
      system: "redis",
      publish: (channel, { delay, id, keepId, maxRetries, payload, timeout }) =>
        Effect.callback((resume) => {
          const { publications } = queueOf(channel)
          const record = `${timeout} ${maxRetries} ${keepId > 0 ? millis(keepId) : 0} ${payload.json}`
          publications.makeRoom(record.length)
          publications.add({ id: encodeKey(id), delay: delay > 0 ? millis(delay) : 0, record, resume })
        }),
      worker: (channel, { concurrency, lease }) =>
        Effect.gen(function* () {
          const { keys } = queueOf(channel)
          const name = `${nonce}.${(workers++).toString(36)}`
          const worker = new RedisQueueWorker(redis, timers, { keys, name, lease, concurrency })
          yield* redis.subscribe(worker.channel, worker.onMessage, worker.wake)
          yield* Effect.addFinalizer(() => worker.close)
          return worker
        }),
      depth: (channel) =>
        Effect.map(
          redis.run<[number, number, number, number]>(Scripts.depth, queueOf(channel).keys, []),
          ([ready, delayed, inFlight, dead]) => ({ ready, delayed, inFlight, dead })
        ),
      deadLetters: (channel, { limit, offset }) =>
        Effect.gen(function* () {
          const letters: Array<DeadJob> = []
          while (letters.length < limit) {
            const most = Math.min(limit - letters.length, mostPerScript)
            const reply = yield* redis.run<Array<string>>(Scripts.deadLetters, queueOf(channel).keys, [
              offset + letters.length,
              most
            ])
            for (let i = 0; i < reply.length; i += 2) letters.push(readLetter(reply[i]!, reply[i + 1]!))
            if (reply.length < 2 * most) break
          }
          return letters
        }),
      deadLetter: (channel, id) =>
        Effect.map(
          redis.send<string | null>("hget", [queueOf(channel).keys[Scripts.lettersKey]!, encodeKey(id)], {
            retry: true
          }),
          (letter) => (letter === null ? undefined : readLetter(encodeKey(id), letter))
        ),
      redrive: (channel, ids) => empty(channel, "redrive", ids),
      discard: (channel, ids) => empty(channel, "discard", ids)
    })
  }
)

const readLetter = (id: string, letter: string): DeadJob => {
  const [record, attempts, reason, firstError, lastError, diedAt] = JSON.parse(letter) as [
    string,
    number,
    DeathReason,
    string,
    string,
    string
  ]
  const [publishedAt, , maxRetries, , payload] = readRecord(record)
  return {
    id: decodeKey(id),
    payload: Payload.fromJson(payload),
    // A worker that was lost on the last attempt is noticed by taking the job once more.
    attempts: Math.min(attempts, maxRetries + 1),
    reason,
    firstError,
    lastError,
    publishedAt,
    diedAt: Number(diedAt)
  }
}

/**
 * Provides `EventQueueStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<EventQueueStore, never, RedisConnection> = Layer.effect(EventQueueStore, make)
