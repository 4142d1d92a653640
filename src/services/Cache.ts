/**
 * Named caches, shared by every instance of an app.
 *
 * ```ts
 * const tokens = yield* Cache.make("auth", TokenPolicy, { ttl: "1 hour" })
 * const policy = yield* tokens.wrap("token:config", loadPolicy, { ttl: "60 seconds" })
 * ```
 *
 * Guarantees:
 *
 * - `get` returns an `Option`: `0`, `false`, `""` and `null` are values, not misses. A stored
 *   payload that no longer decodes is a miss, logged and counted.
 * - `wrap` runs one load per key and instance, however many callers wait for it. A failure is not
 *   cached, and every waiter sees it. Interrupting one waiter leaves the others unharmed;
 *   interrupting the last one stops the load. A `set`, `del` or `reset` during a load wins over
 *   what the load writes, whichever instance it comes from.
 * - When the backend is away, `get` and `set` fail with `Unavailable`; `wrap` runs the load, once,
 *   and returns its value with a warning.
 * - Changing a value that was returned never changes the cache.
 * - `reset` clears one named cache and nothing else.
 *
 * With `near`, an instance keeps what it has read in its own memory:
 *
 * - What `set`, `del`, `reset` or a load writes anywhere is dropped everywhere, by broadcast, in
 *   about the time that a message takes. Meanwhile another instance may still read the old value.
 * - **Staleness is bounded**: where that message is lost (a broker away, a connection that died
 *   silently), the old value is read for at most the near `ttl`, 10 seconds by default. After a
 *   reconnect everything near is dropped.
 * - What is near ends with its entry: an entry that has expired is not read any more.
 * - A backend in memory needs none, and keeps none; everything else is the same.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import { CacheStore } from "./CacheStore.ts"
import { Instance } from "./Instance.ts"
import * as Counts from "./internal/counts.ts"
import type { Count } from "./internal/counts.ts"
import { awaitStop } from "./internal/fibers.ts"
import { glob } from "./internal/glob.ts"
import * as NearCache from "./internal/NearCache.ts"
import { pretty } from "./internal/pretty.ts"
import { settled } from "./internal/settled.ts"
import * as Timers from "./internal/Timers.ts"
import { traced } from "./internal/telemetry.ts"
import * as Validate from "./internal/validate.ts"
import * as Lock from "./Lock.ts"
import * as Metrics from "./Metrics.ts"
import { type Payload, undecided, type Wire, wire } from "./Payload.ts"
import * as PubSub from "./PubSub.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"

/**
 * What can go wrong with a cache. `reason` tells which: `InvalidInput` or `Unavailable`.
 *
 * @since 0.1.0
 */
export class CacheError extends Schema.TaggedError<CacheError>("cohort/CacheError")("CacheError", {
  reason: Schema.Union([InvalidInput, Unavailable])
}) {
  override readonly cause: unknown = this.reason.cause
  override get message(): string {
    return this.reason.message
  }
}

/**
 * Options of {@link make}.
 *
 * @since 0.1.0
 */
export interface Options {
  /** How long entries live when a call does not say; positive, `Infinity` for ever. Default: for ever. */
  readonly ttl?: Duration.Input | undefined
  /** Under what name the entries are stored. Default: the name of the cache. */
  readonly prefix?: string | undefined
  /**
   * Keeps entries in the memory of this instance, too; see the module for what that means. Requires
   * `PubSub`. Instances that write without it must declare it as well, for the others to be told.
   * Caches of one prefix share what is near, under the smaller of their bounds. Default `false`.
   */
  readonly near?: boolean | NearOptions | undefined
}

/**
 * What an instance keeps near.
 *
 * @since 0.2.0
 */
export interface NearOptions {
  /** How many entries. Default 10,000. */
  readonly capacity?: number | undefined
  /** For how long an entry may be out of date; positive. Default 10 seconds. */
  readonly ttl?: Duration.Input | undefined
}

/**
 * What making a cache requires besides `Cache`: broadcast, for one that is near.
 *
 * @since 0.2.0
 */
export type Requirement<O extends Options> = "near" extends keyof O
  ? O["near"] extends false | undefined
    ? never
    : PubSub.PubSub
  : never

/**
 * Options of a write.
 *
 * @since 0.1.0
 */
export interface SetOptions {
  /** How long the entry lives; positive, `Infinity` for ever. Default: the cache's own `ttl`. */
  readonly ttl?: Duration.Input | undefined
}

/**
 * Options of {@link NamedCache.wrap}.
 *
 * @since 0.1.0
 */
export interface WrapOptions extends SetOptions {
  /**
   * One load per *cluster* instead of one per instance: the load runs under a
   * lock, after a second look into the cache. Requires `Lock`. Default `false`.
   */
  readonly exclusive?: boolean | undefined
}

/**
 * What {@link NamedCache.wrap} requires: a lock, unless it is known that it is not `exclusive`.
 *
 * @since 0.2.0
 */
export type WrapRequirement<O extends WrapOptions> = "exclusive" extends keyof O
  ? O["exclusive"] extends false | undefined
    ? never
    : Lock.Lock
  : never

/**
 * Options of {@link NamedCache.wrapWithCondition}.
 *
 * @since 0.1.0
 */
export interface ConditionOptions<A, E, R> extends SetOptions {
  /** `false` neither reads nor writes the cache: the load just runs. Default `true`. */
  readonly useCache?: boolean | undefined
  /** Whether a loaded value may be stored. Default: always. */
  readonly isCacheable?: ((value: A) => boolean | Effect.Effect<boolean, E, R>) | undefined
}

/**
 * One named cache. `R` is what its Schema requires; most require nothing.
 *
 * @since 0.1.0
 */
export interface NamedCache<A, R = never> {
  readonly name: string
  readonly get: (key: string) => Effect.Effect<Option.Option<A>, CacheError, R>
  readonly set: (key: string, value: A, options?: SetOptions) => Effect.Effect<void, CacheError, R>
  /** Whether there was an entry. */
  readonly del: (key: string) => Effect.Effect<boolean, CacheError>
  readonly has: (key: string) => Effect.Effect<boolean, CacheError>
  /** Clears this named cache and nothing else. */
  readonly reset: Effect.Effect<void, CacheError>
  /** Values in the order of the keys, duplicates included. */
  readonly mget: (keys: ReadonlyArray<string>) => Effect.Effect<Array<Option.Option<A>>, CacheError, R>
  /** Writes all entries, or none when one of them is refused. */
  readonly mset: (
    entries: Iterable<readonly [key: string, value: A]>,
    options?: SetOptions
  ) => Effect.Effect<void, CacheError, R>
  /** How many entries there were. */
  readonly mdel: (keys: ReadonlyArray<string>) => Effect.Effect<number, CacheError>
  /**
   * The live keys, in no particular order. In a pattern `*` stands for any characters and `?` for
   * one; a backslash takes away the meaning of the next character.
   */
  readonly keys: (pattern?: string) => Effect.Effect<Array<string>, CacheError>
  /** Time left of an entry, `Duration.infinity` when it has no ttl; `None` without an entry. */
  readonly ttl: (key: string) => Effect.Effect<Option.Option<Duration.Duration>, CacheError>
  /** The cached value, or else what `load` returns, which is stored. */
  readonly wrap: <E, R2, const O extends WrapOptions = {}>(
    key: string,
    load: Effect.Effect<A, E, R2>,
    options?: O
  ) => Effect.Effect<A, E | CacheError, R | R2 | WrapRequirement<O>>
  /** Like `wrap`, but the caller decides whether to use the cache, and which values it may keep. */
  readonly wrapWithCondition: <E, R2, E3 = never, R3 = never>(
    key: string,
    load: Effect.Effect<A, E, R2>,
    options?: ConditionOptions<A, E3, R3>
  ) => Effect.Effect<A, E | E3 | CacheError, R | R2 | R3>
}

/**
 * Makes named caches.
 *
 * @since 0.1.0
 */
export class Cache extends Context.Service<
  Cache,
  {
    readonly make: <S extends Schema.Constraint, const O extends Options = {}>(
      name: string,
      schema: S,
      options?: O
    ) => Effect.Effect<NamedCache<S["Type"], S["DecodingServices"] | S["EncodingServices"]>, CacheError, Requirement<O>>
  }
>()("cohort/services/Cache") {}

/**
 * Makes a named cache. Caches with one name share their entries, on this and on
 * every other instance of the app. With `near` it fails with `Unavailable` when
 * broadcast cannot be subscribed to.
 *
 * @since 0.1.0
 */
export const make = <S extends Schema.Constraint, const O extends Options = {}>(
  name: string,
  schema: S,
  options?: O
): Effect.Effect<
  NamedCache<S["Type"], S["DecodingServices"] | S["EncodingServices"]>,
  CacheError,
  Cache | Requirement<O>
> => Cache.use((cache) => cache.make(name, schema, options))

/** A load on its way, and how many callers wait for it. */
interface Flight {
  readonly fiber: Fiber.Fiber<any, any>
  waiters: number
}

/**
 * Makes the service on the {@link CacheStore} in context.
 *
 * @since 0.1.0
 */
export const makeService: Effect.Effect<Cache["Service"], never, CacheStore | Instance | Scope.Scope> = Effect.gen(
  function* () {
    const store = yield* CacheStore
    const { app } = yield* Instance
    const scope = yield* Effect.scope
    const { now } = yield* Timers.make
    const countHits = yield* Counts.make(Metrics.cacheHits)
    const countMisses = yield* Counts.make(Metrics.cacheMisses)
    const flights = new Map<string, Flight>()
    /** By space: who writes without one still has to tell. */
    const nears = new Map<string, NearCache.NearCache>()
    const opening = yield* Semaphore.make(1)

    const openNear = (
      space: string,
      prefix: string,
      options: NearCache.Options
    ): Effect.Effect<NearCache.NearCache, CacheError, PubSub.PubSub> =>
      Effect.gen(function* () {
        const open = nears.get(space)
        if (open !== undefined) {
          open.tighten(options)
          return open
        }
        const pubsub = yield* PubSub.PubSub
        const near = yield* Scope.provide(NearCache.open(store, pubsub, { prefix, space, now, options }), scope)
        nears.set(space, near)
        return near
      }).pipe(
        Effect.mapError(({ reason }) => wrapError(reason)),
        Semaphore.withPermits(opening, 1)
      )

    yield* Effect.addFinalizer(() =>
      Effect.forEach([...flights.values()], ({ fiber }) => awaitStop(fiber, "a cache load"), {
        concurrency: "unbounded",
        discard: true
      })
    )

    const makeCache = <A, R>(
      name: string,
      codec: Wire<A, R, R>,
      options: Options
    ): Effect.Effect<NamedCache<A, R>, CacheError, PubSub.PubSub> =>
      Effect.suspend(() => {
        const ttl = options.ttl === undefined ? undefined : readTtl(options.ttl)
        const near = readNear(options.near)
        const prefix = options.prefix ?? name
        const invalid =
          Validate.name("name", name) ??
          Validate.name("prefix", prefix) ??
          Validate.invalidOf(ttl) ??
          Validate.invalidOf(near)
        if (invalid !== undefined) return fail(invalid)
        const space = Validate.address(app, "cache", prefix)
        const named = (near: NearCache.NearCache | undefined) =>
          makeNamed(store, flights, nears, near, name, space, codec, ttl as Ttl, {
            hits: countHits({ "cohort.cache.name": name }),
            misses: countMisses({ "cohort.cache.name": name })
          })
        // Memory is as near as it gets.
        return near === undefined || store.local === true
          ? Effect.succeed(named(undefined))
          : Effect.map(openNear(space, prefix, near as NearCache.Options), named)
      })

    return Cache.of({
      // PubSub is only asked for by what `Requirement` says that it requires it.
      make: ((name: string, schema: Schema.Constraint, options: Options = {}) =>
        makeCache(name, wire(schema), options)) as Cache["Service"]["make"]
    })
  }
)

/** Milliseconds; `undefined` keeps an entry for ever. */
type Ttl = number | undefined

const fail = (reason: InvalidInput | Unavailable) => Effect.fail(new CacheError({ reason }))
const wrapError = (reason: InvalidInput | Unavailable) => new CacheError({ reason })
const readTtl = (input: Duration.Input): Ttl | InvalidInput => {
  const ttl = Validate.millis("ttl", input, { infinity: true })
  return ttl === Number.POSITIVE_INFINITY ? undefined : ttl
}
const readNear = (input: Options["near"]): NearCache.Options | InvalidInput | undefined => {
  if (input === undefined || input === false) return undefined
  const options: NearOptions = input === true ? {} : input
  const capacity = Validate.integer("near.capacity", options.capacity ?? 10_000, 1)
  const ttl = Validate.millis("near.ttl", options.ttl ?? "10 seconds")
  if (typeof capacity !== "number") return capacity
  return typeof ttl === "number" ? { capacity, ttl } : ttl
}

const makeNamed = <A, R>(
  store: CacheStore["Service"],
  flights: Map<string, Flight>,
  nears: ReadonlyMap<string, NearCache.NearCache>,
  near: NearCache.NearCache | undefined,
  name: string,
  space: string,
  codec: Wire<A, R, R>,
  defaultTtl: Ttl,
  lookups: { readonly hits: Count; readonly misses: Count }
): NamedCache<A, R> => {
  const ttlOf = (options: SetOptions | undefined): Ttl | InvalidInput =>
    options?.ttl === undefined ? defaultTtl : readTtl(options.ttl)
  /** Whether payloads are read many times, and not once each. */
  const keepsPayloads = near !== undefined || store.local === true

  /** One operation of the store, with its span and its error. */
  const operation = <B>(
    operation: string,
    key: string | undefined,
    run: Effect.Effect<B, Unavailable>
  ): Effect.Effect<B, CacheError> =>
    settled(run) ??
    Effect.mapError(
      traced(store.system, `Cache.${operation}`, { "cache.name": name, "cache.key": key }, run),
      wrapError
    )

  /** Decodes a hit; what does not decode is a miss. */
  const read = (key: string, payload: Payload | undefined): Effect.Effect<Option.Option<A>, never, R> => {
    if (payload === undefined) {
      lookups.misses.value++
      return Effect.succeedNone
    }
    lookups.hits.value++
    if (keepsPayloads) {
      const value = codec.read(payload)
      if (value !== undecided) return Exit.succeed(Option.some(value))
    }
    const decoded = codec.decode(payload)
    const known = settled(decoded)
    if (known !== undefined) return Exit.succeed(Option.some(known.value))
    return Effect.catchCause(Effect.asSome(decoded), (cause) =>
      Effect.logWarning("Cached value does not decode; taken as a miss", pretty(cause)).pipe(
        Effect.annotateLogs({ cache: name, key }),
        Effect.andThen(Metric.update(Metrics.cacheUndecodable, 1)),
        Effect.andThen(Effect.succeedNone)
      )
    )
  }

  /** What is near, or else what the store has. */
  const find = (key: string): Effect.Effect<Payload | undefined, Unavailable> =>
    near === undefined
      ? store.get(space, key)
      : (near.get(key) ?? Effect.map(near.load([key]), (payloads) => payloads[0]))

  const findMany = (keys: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Payload | undefined>, Unavailable> => {
    if (near === undefined) return store.getMany(space, keys)
    const found = new Map<string, Payload | undefined>(keys.map((key) => [key, near.get(key)?.value]))
    const missing = [...found.keys()].filter((key) => found.get(key) === undefined)
    const answer = () => keys.map((key) => found.get(key))
    if (missing.length === 0) return Exit.succeed(answer())
    return Effect.map(near.load(missing), (payloads) => {
      for (const [i, key] of missing.entries()) found.set(key, payloads[i])
      return answer()
    })
  }

  const get = (key: string): Effect.Effect<Option.Option<A>, CacheError, R> =>
    Effect.suspend(() => {
      const invalid = Validate.key(key)
      if (invalid !== undefined) return fail(invalid)
      const found = find(key)
      const known = settled(found)
      return known === undefined
        ? Effect.flatMap(operation("get", key, found), (payload) => read(key, payload))
        : read(key, known.value)
    })

  /**
   * The load and the write after it, as one waiter or many will see it.
   * `degraded` skips the write: the backend has just not answered.
   */
  const loadAndFill = <E, R2, E3, R3>(
    key: string,
    load: Effect.Effect<A, E, R2>,
    ttl: Ttl,
    isCacheable: ConditionOptions<A, E3, R3>["isCacheable"],
    degraded: boolean
  ): Effect.Effect<A, E | E3 | CacheError, R | R2 | R3> =>
    Effect.gen(function* () {
      const reservation = degraded
        ? undefined
        : yield* Effect.catch(operation("reserve", key, store.reserve(space, key)), bypassed(key))
      const giveBack =
        reservation === undefined ? Effect.void : Effect.suspend(() => store.abandon(space, key, reservation))
      return yield* Effect.gen(function* () {
        const value = yield* load
        if (reservation === undefined) return value
        if (isCacheable !== undefined) {
          const cacheable = isCacheable(value)
          if (!(typeof cacheable === "boolean" ? cacheable : yield* cacheable)) {
            yield* Effect.ignore(giveBack)
            return value
          }
        }
        const payload = yield* Effect.mapError(codec.encode("value", value), wrapError)
        const filled = operation("fill", key, store.fill(space, key, reservation, payload, ttl))
        // Where it may have been stored, others may hold what was there before.
        if (yield* Effect.catch(filled, bypassed(key)).pipe(Effect.map((stored) => stored !== false))) {
          nears.get(space)?.changed([key])
        }
        return value
      }).pipe(Effect.onError(() => Effect.ignore(giveBack)))
    })

  const bypassed = (key: string) => (error: CacheError) =>
    Effect.logWarning("Cache unavailable; the load runs without it", error.message).pipe(
      Effect.annotateLogs({ cache: name, key }),
      Effect.andThen(Metric.update(Metrics.cacheBypassed, 1)),
      Effect.andThen(Effect.undefined)
    )

  /** Joins the load of this key that is on its way, or starts it. */
  const single = <E, R2>(key: string, load: Effect.Effect<A, E, R2>): Effect.Effect<A, E, R2> =>
    Effect.withFiber((caller) => {
      const id = `${space}:${key}`
      let flight = flights.get(id)
      if (flight === undefined) {
        const fiber = Effect.runForkWith(caller.context as Context.Context<R2>)(load)
        const done = fiber.pollUnsafe()
        if (done !== undefined) return done
        const started: Flight = { fiber, waiters: 0 }
        flight = started
        flights.set(id, started)
        fiber.addObserver(() => {
          if (flights.get(id) === started) flights.delete(id)
        })
      }
      const joined = flight
      return Effect.callback<A, E>((resume) => {
        joined.waiters++
        const leave = joined.fiber.addObserver(resume)
        return Effect.suspend(() => {
          leave()
          if (--joined.waiters > 0) return Effect.void
          // The last one stops the load; whoever comes now starts another.
          if (flights.get(id) === joined) flights.delete(id)
          return awaitStop(joined.fiber, `load of "${key}" in cache "${name}"`)
        })
      })
    })

  /** The value that a store in memory has just answered with, if it has one. */
  const hitOf = (found: Effect.Effect<Payload | undefined, Unavailable>): A | typeof undecided => {
    const payload = settled(found)?.value
    return payload === undefined ? undecided : codec.read(payload)
  }

  /** What was found, or else the load, joined or started; a backend that is away is passed by. */
  const through = <E, R2>(
    key: string,
    found: Effect.Effect<Payload | undefined, Unavailable>,
    load: (degraded: boolean) => Effect.Effect<A, E, R2>
  ): Effect.Effect<A, E | CacheError, R | R2> =>
    Effect.matchEffect(operation("get", key, found), {
      onFailure: (error) => Effect.andThen(bypassed(key)(error), single(key, load(true))),
      onSuccess: (payload) =>
        Effect.flatMap(read(key, payload), (hit) =>
          hit._tag === "Some" ? Effect.succeed(hit.value) : single(key, load(false))
        )
    })

  /** The load under a lock of the key, after a second look. */
  const exclusively = <E, R2>(
    key: string,
    load: (degraded: boolean) => Effect.Effect<A, E, R2>
  ): Effect.Effect<A, E | CacheError, R | R2 | Lock.Lock> =>
    Effect.suspend(() => {
      let started = false
      const work = Effect.flatMap(
        Effect.suspend(() => {
          started = true
          return Effect.orElseSucceed(get(key), () => Option.none<A>())
        }),
        (hit) => (hit._tag === "Some" ? Effect.succeed(hit.value) : load(false))
      )
      // The work's own exit is carried as a value: its errors are not the lock's.
      return Effect.matchEffect(Lock.runExclusive(`cache:${space}:${key}`, Effect.exit(work)), {
        onSuccess: (exit): Effect.Effect<A, E | CacheError, R2> => exit,
        onFailure: (cause): Effect.Effect<A, E | CacheError, R2> =>
          // Not even granted: the lock's backend is away. Lost on the way: the load must not run twice.
          started
            ? fail(new Unavailable({ backend: store.system, detail: cause.message, cause }))
            : Effect.andThen(
                bypassed(key)(wrapError(new Unavailable({ backend: "lock", detail: cause.message, cause }))),
                load(false)
              )
      })
    })

  /**
   * An operation that writes or removes keys. What was loading them meanwhile is out
   * of date: whoever comes after it starts another load.
   */
  const write = <B>(
    name: string,
    keys: ReadonlyArray<string> | "all",
    run: Effect.Effect<B, Unavailable>
  ): Effect.Effect<B, CacheError> => {
    const detach = () => {
      if (flights.size === 0) return
      const ids =
        keys === "all"
          ? [...flights.keys()].filter((id) => id.startsWith(`${space}:`))
          : keys.map((key) => `${space}:${key}`)
      for (const id of ids) flights.delete(id)
    }
    const written = operation(name, keys === "all" ? undefined : keys[0], run)
    if (settled(written) === undefined) {
      nears.get(space)?.drop(keys)
      return Effect.ensuring(
        written,
        Effect.sync(() => {
          detach()
          nears.get(space)?.changed(keys)
        })
      )
    }
    detach()
    nears.get(space)?.changed(keys)
    return written
  }

  /** `wrap` without a hit at hand; apart from it, so that a hit makes none of these closures. */
  const loadOnce = <E, R2>(
    key: string,
    found: Effect.Effect<Payload | undefined, Unavailable>,
    load: Effect.Effect<A, E, R2>,
    ttl: Ttl,
    exclusive: boolean
  ): Effect.Effect<A, E | CacheError, R | R2 | Lock.Lock> => {
    const run = (degraded: boolean) => loadAndFill<E, R2, never, never>(key, load, ttl, undefined, degraded)
    return exclusive
      ? through(key, found, (degraded) => (degraded ? run(true) : exclusively(key, run)))
      : through(key, found, run)
  }

  const guarded = <B, E, R2>(
    keys: ReadonlyArray<string>,
    options: SetOptions | undefined,
    use: (ttl: Ttl) => Effect.Effect<B, E, R2>
  ): Effect.Effect<B, E | CacheError, R2> =>
    Effect.suspend((): Effect.Effect<B, E | CacheError, R2> => {
      for (const key of keys) {
        const invalid = Validate.key(key)
        if (invalid !== undefined) return fail(invalid)
      }
      const ttl = ttlOf(options)
      return ttl instanceof InvalidInput ? fail(ttl) : use(ttl)
    })

  const encode = (value: A) => Effect.mapError(codec.encode("value", value), wrapError)

  const self: NamedCache<A, R> = {
    name,
    get,
    set: (key, value, options) =>
      guarded([key], options, (ttl) =>
        Effect.flatMap(encode(value), (payload) => write("set", [key], store.set(space, [{ key, payload }], ttl)))
      ),
    del: (key) =>
      guarded([key], undefined, () => Effect.map(write("del", [key], store.del(space, [key])), (n) => n > 0)),
    has: (key) =>
      guarded([key], undefined, () =>
        Effect.map(operation("has", key, store.ttl(space, key)), (left) => left !== undefined)
      ),
    reset: Effect.suspend(() => write("reset", "all", store.reset(space))),
    mget: (keys) =>
      guarded(keys, undefined, () =>
        Effect.flatMap(operation("mget", undefined, findMany(keys)), (payloads) =>
          Effect.forEach(payloads, (payload, i) => read(keys[i]!, payload))
        )
      ),
    mset: (entries, options) =>
      Effect.suspend(() => {
        const list = Array.from(entries)
        return guarded(
          list.map(([key]) => key),
          options,
          (ttl) =>
            Effect.flatMap(
              Effect.forEach(list, ([key, value]) => Effect.map(encode(value), (payload) => ({ key, payload }))),
              (encoded) =>
                write(
                  "mset",
                  encoded.map(({ key }) => key),
                  store.set(space, encoded, ttl)
                )
            )
        )
      }),
    mdel: (keys) => guarded(keys, undefined, () => write("mdel", keys, store.del(space, keys))),
    keys: (pattern) =>
      Effect.suspend(() =>
        Effect.map(operation("keys", undefined, store.keys(space)), (keys) =>
          pattern === undefined ? [...keys] : keys.filter(glob(pattern))
        )
      ),
    ttl: (key) =>
      guarded([key], undefined, () =>
        Effect.map(operation("ttl", key, store.ttl(space, key)), (left) =>
          left === undefined ? Option.none() : Option.some(Duration.millis(left))
        )
      ),
    wrap: (<E, R2>(key: string, load: Effect.Effect<A, E, R2>, options?: WrapOptions) =>
      Effect.suspend((): Effect.Effect<A, E | CacheError, R | R2 | Lock.Lock> => {
        const ttl = ttlOf(options)
        const invalid = Validate.key(key) ?? Validate.invalidOf(ttl)
        if (invalid !== undefined) return fail(invalid)
        const found = find(key)
        const hit = hitOf(found)
        if (hit !== undecided) {
          lookups.hits.value++
          return Exit.succeed(hit)
        }
        return loadOnce(key, found, load, ttl as Ttl, options?.exclusive === true)
      })) as NamedCache<A, R>["wrap"],
    wrapWithCondition: (key, load, options) =>
      options?.useCache === false
        ? guarded([key], options, () => load)
        : guarded([key], options, (ttl) =>
            through(key, find(key), (degraded) => loadAndFill(key, load, ttl, options?.isCacheable, degraded))
          )
  }
  return self
}

/**
 * Provides {@link Cache} on the {@link CacheStore} in context.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<Cache, never, CacheStore | Instance> = Layer.effect(Cache, makeService)
