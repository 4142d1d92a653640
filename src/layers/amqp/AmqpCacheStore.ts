/**
 * Caches on RabbitMQ: a fold of the app's replicated log, in the memory of every instance.
 *
 * - A write returns when it has been applied here, and with it everything before it. The other
 *   instances apply it as it reaches them, in the same order: usually within a millisecond.
 * - **Reads are memory reads.** They see what this instance wrote, and what others did some moments later.
 *   `reads: "latest"` has every read wait until all that was written before it, anywhere, has arrived: a round
 *   trip, which the reads of one turn share.
 * - **Nothing out of date.** An instance that hears nothing answers from memory for `staleness` (4 seconds) at most;
 *   after that it has misses, and stores no loads. One that knows that its connection is lost fails with
 *   `Unavailable`, as on every backend.
 * - Who is granted a lock of the same app sees what was cached before it was released.
 * - Memory is bounded by `capacity` (default 128 MiB, keys and payloads as UTF-16): past it, the
 *   cache that takes most drops entries, least recently written first, sparing what
 *   was read since. Entries that were dropped are misses, on this instance. Beside that an entry that was read
 *   keeps its value, and each named cache what was last written, a megabyte or so.
 * - **An instance that starts reads what the log retains.** Entries that are about to fall out of it are written
 *   again by whoever has them, with or without a ttl, as many bytes as there were new ones meanwhile; when all caches take
 *   more than a quarter of what the log retains, or no instance runs for long, they may be misses for who starts.
 *
 * @since 0.2.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import { CacheStore } from "../../services/CacheStore.ts"
import type { Instance } from "../../services/Instance.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { CacheFold } from "./log/CacheFold.ts"
import { type CacheRecord, isRepetition } from "./log/LogRecord.ts"
import * as Log from "./log/ReplicatedLog.ts"
import type { AmqpConnection } from "./AmqpConnection.ts"

/**
 * Options of {@link make}.
 *
 * @since 0.2.0
 */
export interface Options {
  /** Bytes. Default 128 MiB. */
  readonly capacity?: number | undefined
  /** Default `"local"`. */
  readonly reads?: "local" | "latest" | undefined
}

/** Of all that the log retains: how old an entry is when it is written again, at least, and at most; and how often to look. */
const youngest = 1 / 2
const oldest = 5 / 8
const looks = 16

interface Reservation {
  /** The offset that was read up to, and in which beginning of the log. */
  readonly since: number
  readonly beginning: number
}

/** Before every offset: a fill from another log is refused. */
const never = -2
/** Of a load while the log has stalled. */
const none: Reservation = { since: never, beginning: -1 }

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make = (options: Options = {}): Effect.Effect<CacheStore["Service"], never, Log.ReplicatedLog> =>
  Effect.gen(function* () {
    const log = yield* Log.ReplicatedLog
    const clock = yield* Clock.clockWith(Effect.succeed)
    const { now } = log.timers
    const wall = () => clock.currentTimeMillisUnsafe()
    const latest = options.reads === "latest"
    const fold = new CacheFold(options.capacity ?? 128 * 1024 * 1024)

    const { maxAge, maxBytes } = log.retention
    /** Each instance comes to it at an age of its own: the first one spares the others. */
    const age = youngest + (oldest - youngest) * (yield* Random.next)
    let bytes = 0
    /** How much was logged since the last look, without repetitions: those would cause each other, without end. */
    let news = 0
    let lookedAt = now()

    /** Writes again what is about to be forgotten. */
    const beat = (now: number) => {
      if (news < maxBytes / looks && now - lookedAt < maxAge / looks) return
      const most = Math.min(Math.max(news, maxBytes / looks), maxBytes / 8)
      news = 0
      lookedAt = now
      const since = log.offset()
      const at = wall()
      const before = { read: bytes - maxBytes * age, wall: at - maxAge * age }
      for (const entry of fold.aging(before, most, now)) {
        log.send(() => ({ kind: "fill", at, since, ...entry, again: true }))
      }
    }

    yield* log.attach({
      begin: (first) => {
        bytes = 0
        news = 0
        lookedAt = now()
        fold.begin(first)
      },
      beat,
      apply: ({ offset, record, now, since, size, wall }) => {
        bytes += size
        if (!isRepetition(record)) news += size
        switch (record.kind) {
          case "set":
          case "del":
          case "reset":
          case "fill":
            return fold.apply(offset, record, { now, since, wall, read: bytes })
          default:
            return undefined
        }
      }
    })

    const read = <A>(from: () => A, miss: A): Effect.Effect<A, Unavailable> => {
      if (log.isFresh()) return latest ? Effect.map(log.sync, from) : Exit.succeed(from())
      return log.isStalled() ? Exit.succeed(miss) : Effect.map(latest ? log.sync : log.fresh, from)
    }
    const write = <A>(record: () => CacheRecord): Effect.Effect<A, Unavailable> =>
      Effect.map(log.append(record), ({ answer }) => answer as A)
    return CacheStore.of({
      system: "rabbitmq",
      local: !latest,
      get: (space, key) => read(() => fold.get(space, key, now()), undefined),
      getMany: (space, keys) =>
        read(
          () => keys.map((key) => fold.get(space, key, now())),
          keys.map(() => undefined)
        ),
      set: (space, entries, ttl) =>
        entries.length === 0 ? Exit.void : write(() => ({ kind: "set", space, at: wall(), ttl, entries })),
      del: (space, keys) => (keys.length === 0 ? Exit.succeed(0) : write(() => ({ kind: "del", space, keys }))),
      reset: (space) => write(() => ({ kind: "reset", space })),
      keys: (space) => read(() => fold.keys(space, now()), []),
      ttl: (space, key) => read(() => fold.ttl(space, key, now()), undefined),
      reserve: () => read((): Reservation => ({ since: log.offset(), beginning: log.beginnings() }), none),
      fill: (space, key, reservation, payload, ttl) =>
        Effect.suspend(() => {
          const { beginning, since } = reservation as Reservation
          const isSame = () => beginning === log.beginnings()
          // What is known here is known everywhere when the record comes.
          if (!isSame() || (log.isFresh() && !fold.mayFill(space, key, since))) return Exit.succeed(false)
          return write<boolean>(() => ({
            kind: "fill",
            space,
            at: wall(),
            ttl,
            key,
            since: isSame() ? since : never,
            payload
          }))
        }),
      abandon: () => Exit.void
    })
  })

/**
 * Provides `CacheStore` on a log; with other stores on the same one, what they see of each other is in order.
 *
 * @since 0.2.0
 */
export const layerOnLog = (options?: Options): Layer.Layer<CacheStore, never, Log.ReplicatedLog> =>
  Layer.effect(CacheStore, make(options))

/**
 * Provides `CacheStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<CacheStore, never, AmqpConnection | Instance> = layerOnLog().pipe(
  Layer.provide(Log.layer)
)
