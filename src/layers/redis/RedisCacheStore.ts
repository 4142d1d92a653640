/**
 * Caches on Redis.
 *
 * Every entry names the generation it belongs to, and is live only while that is
 * the current one: `reset` starts another, whatever the number of entries. What it
 * leaves behind is unlinked in the background by the instance that reset, and by
 * `keys`. A generation that is lost (evicted, flushed) never comes again.
 *
 * Every write has a stamp of its own. A reservation remembers the stamp it found,
 * or leaves a placeholder with one, and `fill` writes only where that still is: so
 * it is refused, too, when what it found has expired since, or when the load took
 * more than an hour.
 *
 * The gets of one turn of the event loop are one MGET, the sets and dels one
 * script. On a Redis Cluster a cache is spread over 16 buckets, each in one slot.
 *
 * `keys` walks the whole database (SCAN): its cost is that of the database.
 *
 * @since 0.2.0
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { CacheStore } from "../../services/CacheStore.ts"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import type { Payload } from "../../services/Payload.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { Bucket, type Resume } from "./RedisCacheBucket.ts"
import * as Scripts from "./RedisCacheScripts.ts"
import { RedisConnection } from "./RedisConnection.ts"
import type { RedisScript } from "./RedisScript.ts"
import { decodeKey, encodeKey, escapeGlob, millis } from "./wire.ts"

/**
 * Buckets of a cache on a Redis Cluster. The slot is a CRC, which is linear: at the
 * end of the hash tag these put every cache's buckets into one sixteenth of the slots each.
 */
const labels = ["00", "01", "02", "03", "0a", "0b", "0c", "0d", "20", "21", "22", "23", "2a", "2b", "2c", "2d"]
/** After which a placeholder is forgotten whose loader has died. */
const placeholderMillis = 60 * 60_000
/** How many keys a walk looks at in one script. */
const walkKeys = 500
/** How long a sweep leaves Redis to others, after every page of keys. */
const sweepPause = "5 millis"
/** Resets within this time of each other share a sweep. */
const sweepDelay = "200 millis"
const sweepRetry = Schedule.min([Schedule.exponential("1 second"), Schedule.spaced("1 minute")]).pipe(
  Schedule.jittered,
  Schedule.upTo({ times: 10 })
)

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<CacheStore["Service"], never, RedisConnection | Scope.Scope> = Effect.gen(
  function* () {
    const redis = yield* RedisConnection
    const scope = yield* Effect.scope
    const unique = makeUnique()

    const spaces = new Map<string, ReadonlyArray<Bucket>>()
    const bucketsOf = (space: string) =>
      getOrMake(spaces, space, () =>
        redis.isCluster
          ? labels.map((label) => new Bucket(redis, unique, keyOf(`${space}:${label}`)))
          : [new Bucket(redis, unique, keyOf(space))]
      )
    const bucketOf = (space: string, key: string): Bucket => {
      const buckets = bucketsOf(space)
      return buckets.length === 1 ? buckets[0]! : buckets[hash(key) % buckets.length]!
    }

    /** A script on one entry, after what was written before it in this turn. */
    const run = <A>(script: RedisScript, space: string, key: string, args: ReadonlyArray<string | number>) => {
      const bucket = bucketOf(space, key)
      bucket.flush()
      return redis.run<A>(script, [bucket.generation, bucket.keyOf(key)], args)
    }

    /** The live keys; unlinks what resets have left behind. */
    const walk = (space: string, pause: Effect.Effect<void>): Stream.Stream<ReadonlyArray<string>, Unavailable> => {
      const tag = redis.isCluster ? `${escapeGlob(keyOf(`${space}:`)).slice(0, -1)}??}` : escapeGlob(keyOf(space))
      return Stream.flatMap(
        Stream.tap(redis.scan(`${tag}:*`), () => pause),
        (found) => {
          const parts: Array<readonly [Bucket, ReadonlyArray<string>]> = []
          for (const bucket of bucketsOf(space)) {
            const keys = found.filter((key) => key.startsWith(bucket.prefix))
            for (let i = 0; i < keys.length; i += walkKeys) parts.push([bucket, keys.slice(i, i + walkKeys)])
          }
          return Stream.mapEffect(Stream.fromIterable(parts), ([bucket, keys]) =>
            Effect.map(redis.run<Array<number>>(Scripts.sieve, [bucket.generation, ...keys], []), (live) =>
              keys.filter((_, i) => live[i] === 1).map((key) => decodeKey(key.slice(bucket.prefix.length)))
            )
          )
        }
      )
    }

    /** The caches that are being swept, and whether they were reset again since that began. */
    const sweeps = new Map<string, { again: boolean }>()

    const sweep = (space: string): Effect.Effect<void> =>
      Effect.suspend(() => {
        const running = sweeps.get(space)
        if (running !== undefined) {
          running.again = true
          return Effect.void
        }
        const state = { again: false }
        sweeps.set(space, state)
        const pass = Effect.suspend(() => {
          state.again = false
          return Stream.runDrain(walk(space, Effect.sleep(sweepPause)))
        })
        return Effect.delay(pass, sweepDelay).pipe(
          Effect.repeat({ while: () => state.again }),
          Effect.retry(sweepRetry),
          Effect.catch((error) =>
            Effect.annotateLogs(Effect.logWarning("What a reset has left behind stays until the next one", error), {
              cache: space
            })
          ),
          Effect.ensuring(Effect.sync(() => sweeps.delete(space))),
          Effect.forkIn(scope),
          Effect.asVoid
        )
      })

    return CacheStore.of({
      system: "redis",
      get: (space, key) => Effect.callback((resume) => bucketOf(space, key).get(key, resume)),
      getMany: (space, keys) =>
        all(keys, (key, resume: Resume<Payload | undefined>) => bucketOf(space, key).get(key, resume)),
      set: (space, entries, ttl) => {
        const life = ttl === undefined ? "" : millis(ttl)
        return Effect.asVoid(
          all(entries, ({ key, payload }, resume: Resume<boolean>) =>
            bucketOf(space, key).set(key, payload, life, resume)
          )
        )
      },
      del: (space, keys) =>
        Effect.map(
          all(keys, (key, resume: Resume<boolean>) => bucketOf(space, key).remove(key, resume)),
          (removed) => removed.filter(Boolean).length
        ),
      reset: (space) =>
        Effect.andThen(
          Effect.forEach(
            bucketsOf(space),
            (bucket) => {
              bucket.flush()
              return redis.run(Scripts.reset, [bucket.generation], [unique()])
            },
            { concurrency: "unbounded", discard: true }
          ),
          sweep(space)
        ),
      keys: (space) => Effect.map(Stream.runCollect(walk(space, Effect.void)), (found) => [...new Set(found.flat())]),
      ttl: (space, key) => Effect.callback((resume) => bucketOf(space, key).ttl(key, resume)),
      reserve: (space, key) => run<string>(Scripts.reserve, space, key, [unique(), unique(), placeholderMillis]),
      fill: (space, key, reservation, payload, ttl) =>
        Effect.map(
          run<number>(Scripts.fill, space, key, [
            reservation as string,
            ttl === undefined ? "" : millis(ttl),
            payload.json
          ]),
          (stored) => stored === 1
        ),
      abandon: (space, key, reservation) => Effect.asVoid(run(Scripts.abandon, space, key, [reservation as string]))
    })
  }
)

/** Asks for each, and answers with all answers, in order, or with the first failure. */
const all = <A, B>(
  items: ReadonlyArray<A>,
  ask: (item: A, resume: Resume<B>) => void
): Effect.Effect<Array<B>, Unavailable> => {
  if (items.length === 0) return Exit.succeed([])
  return Effect.callback((resume) => {
    const answers = new Array<B>(items.length)
    let missing = items.length
    for (const [i, item] of items.entries()) {
      ask(item, (result) => {
        if (result._tag === "Failure") return resume(Exit.failCause(result.cause))
        answers[i] = result.value
        if (--missing === 0) resume(Exit.succeed(answers))
      })
    }
  })
}

/** Marks for generations and writes: of one length, and never the same twice, on any instance. */
const makeUnique = (): (() => string) => {
  const length = 5
  const most = 36 ** length
  let count = most
  let nonce = ""
  return () => {
    if (count === most) {
      count = 0
      nonce = SecureRandom.uuidV4Unsafe()
        .replaceAll("-", "")
        .slice(-(Scripts.markLength - length))
    }
    return nonce + (count++).toString(36).padStart(length, "0")
  }
}

/** FNV-1a, for spreading keys over buckets. */
const hash = (text: string): number => {
  let value = 0x811c9dc5
  for (let i = 0; i < text.length; i++) value = Math.imul(value ^ text.charCodeAt(i), 0x01000193)
  return value >>> 0
}

/** The key of a bucket. Braces of its own would change what Redis takes for the hash tag; `%` is escaped already. */
const keyOf = (bucket: string): string =>
  `cohort:{${encodeKey(bucket).replace(/[{}]/g, (brace) => (brace === "{" ? "%7B" : "%7D"))}}`

/**
 * Provides `CacheStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<CacheStore, never, RedisConnection> = Layer.effect(CacheStore, make)
