/**
 * Caches on RabbitMQ: a fold of the app's replicated log, in the memory of every instance.
 *
 * - A write returns when it has been applied here, and with it everything before it. The other
 *   instances apply it as it reaches them, in the same order: usually within a millisecond.
 * - **Reads are memory reads.** An instance that was cut off answers from memory for
 *   `staleness` (default 4 seconds) at most, and for no longer than it takes to notice;
 *   after that reads fail with `Unavailable`, and a `wrap` loads. `reads: "latest"` has
 *   every read wait until all that was written before it, anywhere, has arrived: a round trip, which the
 *   reads of one turn share.
 * - Who is granted a lock of the same app sees what was cached before it was released.
 * - Memory is bounded by `capacity` (default 128 MiB, keys and payloads as UTF-16): past it, the
 *   cache that takes most drops entries, least recently written first, sparing what
 *   was read since. Entries that were dropped are misses, on this instance.
 * - An instance that starts reads what the log retains. Entries older than that are misses
 *   on it, whatever their ttl.
 *
 * @since 0.2.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import { CacheStore } from "../../services/CacheStore.ts"
import type { Instance } from "../../services/Instance.ts"
import type { Payload } from "../../services/Payload.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { CacheFold } from "./log/CacheFold.ts"
import type { CacheRecord } from "./log/LogRecord.ts"
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

interface Reservation {
  /** The offset that was read up to, and in which beginning of the log. */
  readonly since: number
  readonly beginning: number
}

/** Before every offset: a fill from another log is refused. */
const never = -2

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
    const latest = options.reads === "latest"
    const fold = new CacheFold(options.capacity ?? 128 * 1024 * 1024)

    yield* log.attach({
      begin: (first) => fold.begin(first),
      apply: ({ offset, record, now, wall }) => {
        switch (record.kind) {
          case "set":
          case "del":
          case "reset":
          case "fill":
            return fold.apply(offset, record, { now, wall })
          default:
            return undefined
        }
      }
    })

    const read = <A>(from: () => A): Effect.Effect<A, Unavailable> => {
      if (latest) return Effect.map(log.sync, from)
      return log.isFresh() ? Exit.succeed(from()) : Effect.map(log.fresh, from)
    }
    const write = <A>(record: () => CacheRecord): Effect.Effect<A, Unavailable> =>
      Effect.map(log.append(record), ({ answer }) => answer as A)
    const wall = () => clock.currentTimeMillisUnsafe()

    return CacheStore.of({
      system: "rabbitmq",
      local: !latest,
      get: (space, key) => read((): Payload | undefined => fold.get(space, key, now())),
      getMany: (space, keys) => read(() => keys.map((key) => fold.get(space, key, now()))),
      set: (space, entries, ttl) =>
        entries.length === 0 ? Exit.void : write(() => ({ kind: "set", space, at: wall(), ttl, entries })),
      del: (space, keys) => (keys.length === 0 ? Exit.succeed(0) : write(() => ({ kind: "del", space, keys }))),
      reset: (space) => write(() => ({ kind: "reset", space })),
      keys: (space) => read(() => fold.keys(space, now())),
      ttl: (space, key) => read(() => fold.ttl(space, key, now())),
      reserve: () => read((): Reservation => ({ since: log.offset(), beginning: log.beginnings() })),
      fill: (space, key, reservation, payload, ttl) =>
        Effect.suspend(() => {
          const reserved = reservation as Reservation
          const since = () => (reserved.beginning === log.beginnings() ? reserved.since : never)
          // What is known here is known everywhere when the record comes.
          if (log.isFresh() && !fold.mayFill(space, key, since())) return Exit.succeed(false)
          return write<boolean>(() => ({ kind: "fill", space, at: wall(), ttl, key, since: since(), payload }))
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
