/**
 * Locks on Redis.
 *
 * - **Direct grant.** Who releases a lock gives it to the first waiter, in one
 *   script, and tells that waiter's process through its channel: nobody polls,
 *   nobody overtakes. A waiter asks again every 3 seconds, or when the holder's
 *   lease ends, so a message that was lost costs time and nothing else.
 * - **Waiters that died are passed over**: at once when their process has no
 *   subscription any more (one server), otherwise 10 seconds after they last asked.
 *   One that was cut off that long waits again from the end of the line. Until then a
 *   waiter whose process is frozen, or cut off without a word, may be granted the lock
 *   and keep it for its ttl.
 * - **Leases** end in Redis a few milliseconds later than for their holder, so that its
 *   work is stopped before the next one comes. They end by the clock of Redis: one that
 *   is set forward ends them early, one that is set back ends that of a dead holder late.
 * - **Fences** are the clock of Redis in microseconds, or one more than the last:
 *   they increase across restarts and across a flushed store, as long as the clock
 *   is not set back while the key was unused for an hour.
 * - A lock that is not used leaves its last fence, for an hour.
 *
 * When Redis itself forgets (a restart without its append-only file, a failover to
 * a replica that lagged, FLUSHALL, eviction), a second holder is possible until the first
 * one's next renewal is refused; only its fence tells them apart.
 *
 * @since 0.2.0
 */
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Stream from "effect/Stream"
import { Instance } from "../../services/Instance.ts"
import * as Timers from "../../services/internal/Timers.ts"
import { type Grant, type HeldLock, LockStore } from "../../services/LockStore.ts"
import { Unavailable } from "../../services/Reason.ts"
import { RedisConnection } from "./RedisConnection.ts"
import * as Scripts from "./RedisLockScripts.ts"
import { decodeKey, encodeKey, escapeGlob, millis } from "./wire.ts"

/** Longest time between two asks of a waiter. */
const askAgainMillis = 3_000

/**
 * How long Redis holds a lock for a ttl. A little longer than its holder, whose timers may be
 * late and whose clock may be slower: the work has stopped before the next holder comes.
 */
const leaseOf = (ttl: number): number => millis(ttl * 1.001 + 5)

const baseOf = (space: string, key: string): string => `cohort:{lock:${space}:${encodeKey(key)}}`
const keysOf = (base: string): ReadonlyArray<string> => [base, `${base}:q`, `${base}:w`]

/** The id of the instance that made a request, of the request's. */
const instanceOf = (id: string): string => decodeURIComponent(id.slice(id.indexOf(".", id.indexOf(".") + 1) + 1))

/** A request for a lock, and the grant it became. */
interface Request extends Grant {
  readonly id: string
  readonly keys: ReadonlyArray<string>
  readonly lease: number
  /** Of the grant; of the last grant to another, while waiting. */
  fence: number
  /** Not later than the grant. */
  since: number
  state: "waiting" | "granted" | "over"
}

interface Waiter extends Request {
  /** Of the grant that it was last told to wait for. */
  lastFence: number
  /** When the next ask is due. */
  timer: Timers.Timer | undefined
  readonly resume: (granted: Exit.Exit<Grant, Unavailable>) => void
}

/** A release that nobody waits for is worth a few tries: it is a lease that nobody holds. */
const releaseRetry = Schedule.exponential("500 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 3 }))

type Needs = RedisConnection | Instance | Scope.Scope

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<LockStore["Service"], never, Needs> = Effect.gen(function* () {
  const redis = yield* RedisConnection
  const { id: instance } = yield* Instance
  const scope = yield* Effect.scope
  const timers = yield* Timers.make
  const runFork = Effect.runForkWith(yield* Effect.context<never>())

  const nonce = SecureRandom.uuidV4Unsafe().replaceAll("-", "").slice(0, 16)
  const channel = `cohort:lock:${nonce}`
  /** For whoever lists locks: who asked is a part of what a request is known by. */
  const by = encodeURIComponent(instance.toWellFormed())
  const isCluster = redis.isCluster ? "1" : "0"
  let count = 0
  const waiters = new Map<string, Waiter>()

  const request = (space: string, key: string, ttl: number): Request => {
    return {
      id: `${nonce}.${(count++).toString(36)}.${by}`,
      key,
      keys: keysOf(baseOf(space, key)),
      lease: leaseOf(ttl),
      fence: 0,
      since: timers.now(),
      state: "waiting"
    }
  }

  /** Gives up a request, whether or not it was granted meanwhile. */
  const release = (request: Request) =>
    Effect.suspend(() => {
      request.state = "over"
      return redis.run(Scripts.release, request.keys, [request.id, isCluster, request.fence])
    })

  const releaseSoon = (request: Request) => {
    request.state = "over"
    runFork(Effect.forkIn(Effect.ignore(Effect.retry(release(request), releaseRetry)), scope))
  }

  /** Whether what was granted since `sent` may be half over, as after an outage. Asking again starts it again. */
  const isLate = (request: Request, sent: number) => timers.now() - sent > request.lease / 2

  // --- waiting ---

  const leave = (waiter: Waiter) => {
    waiters.delete(waiter.id)
    if (waiter.timer !== undefined) timers.cancel(waiter.timer)
  }

  const end = (waiter: Waiter, result: Exit.Exit<Grant, Unavailable>) => {
    leave(waiter)
    waiter.resume(result)
  }

  const granted = (waiter: Waiter, fence: number, since: number) => {
    waiter.state = "granted"
    waiter.fence = fence
    waiter.since = since
    end(waiter, Exit.succeed(waiter))
  }

  /** `again`: the answer may be as late as it likes. */
  const ask = (waiter: Waiter, again = false) => {
    const sent = timers.now()
    redis.requestRun<string | [string, string]>(
      Scripts.acquire,
      waiter.keys,
      [waiter.id, waiter.lease, waiter.lease + Scripts.fenceMemoryMillis, isCluster, channel],
      (result) => {
        if (result._tag === "Failure") {
          if (waiter.state === "waiting") {
            releaseSoon(waiter)
            end(waiter, Exit.failCause(result.cause))
          }
          return
        }
        const isGranted = typeof result.value === "string"
        const fence = Number(isGranted ? result.value : result.value[0])
        if (waiter.state !== "waiting") {
          // Late, and perhaps the first to reach Redis after the end of what was granted: then it asked for a new grant.
          if (waiter.state === "over" || fence > waiter.fence) releaseSoon(waiter)
          return
        }
        if (isGranted) {
          return again || !isLate(waiter, sent) ? granted(waiter, fence, sent) : ask(waiter, true)
        }
        waiter.lastFence = fence
        waiter.since = sent
        if (waiter.timer !== undefined) timers.cancel(waiter.timer)
        waiter.timer = timers.at(timers.now() + Math.min(Number(result.value[1]) + 2, askAgainMillis), () =>
          ask(waiter)
        )
      }
    )
  }

  /** `<id> <fence>` is a grant; `<id>` alone says that asking again is worth it. */
  const onMessage = (message: string) => {
    const [id, text] = message.split(" ") as [string, string | undefined]
    const waiter = waiters.get(id)
    if (waiter === undefined) return
    const fence = Number(text ?? Number.POSITIVE_INFINITY)
    // One that was late: this waiter has been told to wait since.
    if (fence <= waiter.lastFence) return
    // The grant came after the last ask that was told to wait. If that is long ago
    // for such a ttl, another ask starts the lease again, and tells when.
    if (text === undefined || timers.now() - waiter.since > waiter.lease / 10) ask(waiter)
    else granted(waiter, fence, waiter.since)
  }

  const askAll = () => {
    for (const waiter of [...waiters.values()]) ask(waiter)
  }

  /** Whoever waits must be heard of. */
  let subscribed = false
  let subscribing: Fiber.Fiber<void, Unavailable> | undefined
  const subscribe: Effect.Effect<void, Unavailable> = Effect.suspend(() => {
    subscribing ??= runFork(Scope.provide(redis.subscribe(channel, onMessage, askAll), scope))
    const fiber = subscribing
    fiber.addObserver((exit) => {
      subscribed ||= Exit.isSuccess(exit)
      if (subscribing === fiber) subscribing = undefined
    })
    return Fiber.join(fiber)
  })

  const wait = (space: string, key: string, ttl: number): Effect.Effect<Grant, Unavailable> =>
    Effect.suspend(() => {
      let waiting: Waiter | undefined
      return Effect.callback<Grant, Unavailable>((resume) => {
        const waiter: Waiter = { ...request(space, key, ttl), lastFence: 0, timer: undefined, resume }
        waiting = waiter
        waiters.set(waiter.id, waiter)
        ask(waiter)
      }).pipe(
        Effect.onInterrupt(() =>
          Effect.suspend(() => {
            const waiter = waiting
            if (waiter === undefined) return Effect.void
            leave(waiter)
            return Effect.catch(Effect.asVoid(release(waiter)), () => Effect.sync(() => releaseSoon(waiter)))
          })
        )
      )
    })

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      subscribing?.interruptUnsafe()
      return Effect.forEach(
        [...waiters.values()],
        (waiter) => {
          end(waiter, Exit.fail(new Unavailable({ backend: "redis", detail: "the lock store is closed" })))
          return Effect.ignore(release(waiter))
        },
        { concurrency: "unbounded", discard: true }
      )
    })
  )

  // At once if Redis is there, so that the first who waits does not come late. Otherwise when someone waits.
  if ((yield* redis.state).commands === "ready") yield* Effect.ignore(subscribe)

  return LockStore.of({
    system: "redis",
    tryAcquire: (space, key, ttl) =>
      Effect.suspend(() => {
        const asked = request(space, key, ttl)
        const run = Effect.suspend(() => {
          asked.since = timers.now()
          return redis.run<string>(Scripts.tryAcquire, asked.keys, [
            asked.id,
            asked.lease,
            asked.lease + Scripts.fenceMemoryMillis,
            isCluster
          ])
        })
        return Effect.flatMap(run, (fence) =>
          fence !== "" && isLate(asked, asked.since) ? run : Effect.succeed(fence)
        ).pipe(
          Effect.tapError(() => Effect.sync(() => releaseSoon(asked))),
          Effect.map((fence) => {
            if (fence === "") return undefined
            asked.state = "granted"
            asked.fence = Number(fence)
            return asked
          })
        )
      }),
    acquire: (space, key, ttl) =>
      subscribed ? wait(space, key, ttl) : Effect.andThen(subscribe, wait(space, key, ttl)),
    renew: (grant, ttl) => {
      const { id, keys } = grant as Request
      return Effect.map(
        redis.run<number>(Scripts.renew, keys, [id, leaseOf(ttl), isCluster]),
        (renewed) => renewed === 1
      )
    },
    release: (grant) => Effect.asVoid(release(grant as Request)),
    list: (space) => {
      const before = baseOf(space, "").slice(0, -1)
      const look = (base: string) =>
        Effect.map(
          redis.run<readonly [string, string, string, ReadonlyArray<string>] | null>(Scripts.look, keysOf(base), []),
          (found): ReadonlyArray<HeldLock> =>
            found === null
              ? []
              : [
                  {
                    key: decodeKey(base.slice(before.length, -1)),
                    fence: Number(found[0]),
                    ttl: Number(found[1]),
                    holder: instanceOf(found[2]),
                    waiters: found[3].map(instanceOf)
                  }
                ]
        )
      // The keys of those who wait end otherwise.
      return redis.scan(`${escapeGlob(before)}*}`).pipe(
        Stream.runCollect,
        Effect.flatMap((batches) => Effect.forEach(new Set([...batches].flat()), look, { concurrency: 64 })),
        Effect.map((locks) => locks.flat())
      )
    }
  })
})

/**
 * Provides `LockStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<LockStore, never, RedisConnection | Instance> = Layer.effect(LockStore, make)
