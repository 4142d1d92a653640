/**
 * Entries of one named cache kept in this process, in front of its store.
 *
 * What is kept was read from the store, and lives as long as the entry does, at
 * most `ttl`. Whoever writes says so through broadcast, and everybody drops what
 * they have of the keys; after a gap, everything. A read that was on its way
 * meanwhile is not kept.
 *
 * At most `capacity` entries are kept; those that were not read since the last look
 * go first (SIEVE: a hit only sets a flag).
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { CacheStore } from "../CacheStore.ts"
import type { Payload } from "../Payload.ts"
import type { PubSub, PubSubError } from "../PubSub.ts"
import type { Unavailable } from "../Reason.ts"
import * as Topic from "../Topic.ts"

/** Which keys were written; `"all"` after a reset, or a gap. */
export type Keys = ReadonlyArray<string> | "all"

interface Kept {
  /** Kept as the answer it is given out as. */
  readonly answer: Exit.Success<Payload>
  readonly expiresAt: number
  read: boolean
}

/** Keys, or nothing for all of them. */
const Changed = Schema.NullOr(Schema.Array(Schema.String))

/** Telling twice is as good as once. Whoever could not be told for long has dropped it by then. */
const tellRetry = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("2 seconds")]).pipe(
  Schedule.jittered,
  Schedule.upTo({ times: 5 })
)

/** Beyond this many keys a message says that all have changed. */
const mostKeys = 1_000

export interface Options {
  readonly capacity: number
  /** In milliseconds. */
  readonly ttl: number
}

export class NearCache {
  private readonly store: CacheStore["Service"]
  private readonly space: string
  private readonly now: () => number
  private options: Options
  private readonly kept = new Map<string, Kept>()
  private hand: Iterator<[string, Kept]> | undefined
  /** The latest read on its way of each key; a write takes it out. */
  private readonly reads = new Map<string, object>()
  /** Written, and not yet told; those who write while others are told are told of together. */
  private untold: Set<string> | "all" | undefined
  private telling = false
  private readonly tell: (changed: ReadonlyArray<string> | null) => Effect.Effect<void>
  private readonly fork: (effect: Effect.Effect<void>) => void

  constructor(
    store: CacheStore["Service"],
    space: string,
    now: () => number,
    options: Options,
    tell: (changed: ReadonlyArray<string> | null) => Effect.Effect<void>,
    fork: (effect: Effect.Effect<void>) => void
  ) {
    this.store = store
    this.space = space
    this.now = now
    this.options = options
    this.tell = tell
    this.fork = fork
  }

  /** Of two who declare one cache, the smaller bounds hold. */
  tighten({ capacity, ttl }: Options): void {
    // What was kept under wider ones is for those who declare them, and does not end in time for this one.
    if (capacity < this.options.capacity || ttl < this.options.ttl) this.drop("all")
    this.options = { capacity: Math.min(capacity, this.options.capacity), ttl: Math.min(ttl, this.options.ttl) }
  }

  /** What is kept of a key. */
  get(key: string): Exit.Success<Payload> | undefined {
    const kept = this.kept.get(key)
    if (kept === undefined) return undefined
    if (kept.expiresAt > this.now()) {
      kept.read = true
      return kept.answer
    }
    this.kept.delete(key)
    return undefined
  }

  /** Reads keys from the store, and keeps what is still true when the answer comes. */
  load(keys: ReadonlyArray<string>): Effect.Effect<ReadonlyArray<Payload | undefined>, Unavailable> {
    return Effect.suspend(() => {
      const { reads, space, store } = this
      const mark = {}
      // A ttl counts from before it was asked for: what is kept ends before its entry, not after.
      const since = this.now()
      for (const key of keys) reads.set(key, mark)
      const lefts = Effect.forEach(keys, (key) => Effect.orElseSucceed(store.ttl(space, key), () => undefined), {
        concurrency: "unbounded"
      })
      return Effect.zip(
        Effect.suspend(() => store.getMany(space, keys)),
        lefts,
        { concurrent: true }
      ).pipe(
        Effect.map(([payloads, lefts]) => {
          for (const [i, key] of keys.entries()) {
            const payload = payloads[i]
            const left = lefts[i]
            if (payload !== undefined && left !== undefined && reads.get(key) === mark)
              this.keep(key, payload, since, left)
          }
          return payloads
        }),
        Effect.ensuring(
          Effect.sync(() => {
            for (const key of keys) if (reads.get(key) === mark) reads.delete(key)
          })
        )
      )
    })
  }

  /** Drops what is kept of keys, and what reads on their way will bring. */
  drop(keys: Keys): void {
    if (keys === "all") {
      this.kept.clear()
      this.reads.clear()
      this.hand = undefined
      return
    }
    for (const key of keys) {
      this.kept.delete(key)
      this.reads.delete(key)
    }
  }

  /** Drops keys everywhere. That others could not be told is logged: it is not the writer's failure. */
  changed(keys: Keys): void {
    this.drop(keys)
    if (keys === "all" || this.untold === "all") {
      this.untold = "all"
    } else {
      this.untold ??= new Set()
      for (const key of keys) this.untold.add(key)
      if (this.untold.size > mostKeys) this.untold = "all"
    }
    if (this.telling) return
    this.telling = true
    this.fork(this.tellAll)
  }

  private readonly tellAll: Effect.Effect<void> = Effect.suspend(() => {
    const { untold } = this
    this.untold = undefined
    return this.tell(untold === undefined || untold === "all" ? null : [...untold])
  }).pipe(
    Effect.repeat({ while: () => this.untold !== undefined }),
    Effect.ensuring(
      Effect.sync(() => {
        this.telling = false
      })
    )
  )

  private keep(key: string, payload: Payload, since: number, left: number): void {
    const { capacity, ttl } = this.options
    // An entry that is written again keeps its turn.
    if (!this.kept.has(key)) while (this.kept.size >= capacity) this.evict()
    const answer = Exit.succeed(payload) as Exit.Success<Payload>
    this.kept.set(key, { answer, expiresAt: since + Math.min(ttl, left), read: false })
  }

  private evict(): void {
    while (true) {
      this.hand ??= this.kept.entries()
      const next = this.hand.next()
      if (next.done) {
        this.hand = undefined
      } else if (next.value[1].read) {
        next.value[1].read = false
      } else {
        this.kept.delete(next.value[0])
        return
      }
    }
  }
}

/** Opens the near cache of a space: once it returns, what others write is dropped here. */
export const open = (
  store: CacheStore["Service"],
  pubsub: PubSub["Service"],
  cache: { readonly prefix: string; readonly space: string; readonly now: () => number; readonly options: Options }
): Effect.Effect<NearCache, PubSubError, Scope.Scope> =>
  Effect.gen(function* () {
    const scope = yield* Effect.scope
    const run = Effect.runForkWith(yield* Effect.context<never>())
    const topic = Topic.make(cache.prefix, Changed, "cache")
    const near = new NearCache(
      store,
      cache.space,
      cache.now,
      cache.options,
      (changed) =>
        Effect.catch(Effect.retry(pubsub.publish(topic, changed), tellRetry), (error) =>
          Effect.annotateLogs(
            Effect.logWarning(
              "Other instances were not told of a write; they may keep what is near until its ttl",
              error.message
            ),
            { cache: cache.prefix }
          )
        ),
      (effect) => void run(Effect.forkIn(effect, scope, { startImmediately: true }))
    )
    yield* pubsub.subscribe(topic, (keys) => Effect.sync(() => near.drop(keys ?? "all")), {
      onGap: Effect.sync(() => near.drop("all"))
    })
    return near
  })
