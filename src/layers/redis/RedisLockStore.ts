/**
 * Locks on Redis.
 *
 * - **Direct grant.** Who releases a lock gives it to the first waiter, in one
 *   script, and tells that waiter's process through its channel: nobody polls,
 *   nobody overtakes. A waiter asks again every 3 seconds, or when the holder's
 *   lease ends, so a message that was lost costs time and nothing else.
 * - **Waiters that died are passed over**: at once when their process has no
 *   subscription any more (one server), otherwise 10 seconds after they last asked.
 *   One that was cut off that long waits again from the end of the line.
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
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as Timers from "../../services/internal/Timers.ts"
import { type Grant, LockStore } from "../../services/LockStore.ts"
import type { Unavailable } from "../../services/Reason.ts"
import { RedisConnection } from "./RedisConnection.ts"
import * as Scripts from "./RedisLockScripts.ts"
import { encodeKey, millis } from "./wire.ts"

/** Longest time between two asks of a waiter. */
const askAgainMillis = 3_000

/** A request for a lock, and the grant it became. */
interface Request extends Grant {
  readonly id: string
  readonly keys: ReadonlyArray<string>
  readonly ttl: number
  fence: number
  since: number
  state: "waiting" | "granted" | "over"
}

interface Waiter extends Request {
  /** When the next ask is due. */
  timer: Timers.Timer | undefined
  readonly resume: (granted: Exit.Exit<Grant, Unavailable>) => void
}

/** A withdrawal that nobody waits for is worth a few tries: it is a lease that nobody holds. */
const withdrawRetry = Schedule.exponential("500 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 3 }))

/**
 * Makes the store of one instance.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<LockStore["Service"], never, RedisConnection | Scope.Scope> = Effect.gen(function* () {
  const redis = yield* RedisConnection
  const scope = yield* Effect.scope
  const timers = yield* Timers.make
  const runFork = Effect.runForkWith(yield* Effect.context<never>())

  const nonce = SecureRandom.uuidV4Unsafe().replaceAll("-", "").slice(0, 16)
  const channel = `cohort:lock:${nonce}`
  const isCluster = redis.isCluster ? "1" : "0"
  let count = 0
  const waiters = new Map<string, Waiter>()

  const request = (space: string, key: string, ttl: number): Request => {
    const base = `cohort:{lock:${space}:${encodeKey(key)}}`
    return {
      id: `${nonce}.${(count++).toString(36)}`,
      key,
      keys: [base, `${base}:q`, `${base}:w`],
      ttl: millis(ttl),
      fence: 0,
      since: timers.now(),
      state: "waiting"
    }
  }

  /** Gives up a request, whether or not it was granted meanwhile. */
  const withdraw = (request: Request) =>
    Effect.suspend(() => {
      request.state = "over"
      return redis.run(Scripts.withdraw, request.keys, [request.id, isCluster])
    })

  const withdrawSoon = (request: Request) => {
    request.state = "over"
    runFork(Effect.forkIn(Effect.ignore(Effect.retry(withdraw(request), withdrawRetry)), scope))
  }

  // --- waiting ---

  const end = (waiter: Waiter, result: Exit.Exit<Grant, Unavailable>) => {
    waiters.delete(waiter.id)
    if (waiter.timer !== undefined) timers.cancel(waiter.timer)
    waiter.resume(result)
  }

  const granted = (waiter: Waiter, fence: number, since: number) => {
    waiter.state = "granted"
    waiter.fence = fence
    waiter.since = since
    end(waiter, Exit.succeed(waiter))
  }

  const ask = (waiter: Waiter) => {
    const sent = timers.now()
    redis.requestRun<[number, string]>(
      Scripts.acquire,
      waiter.keys,
      [waiter.id, waiter.ttl, isCluster, channel],
      (result) => {
        if (waiter.state !== "waiting") {
          // It came too late, and may have asked for a lock that is over.
          if (waiter.state === "over" && result._tag === "Success") withdrawSoon(waiter)
          return
        }
        if (result._tag === "Failure") {
          withdrawSoon(waiter)
          return end(waiter, Exit.failCause(result.cause))
        }
        const [isGranted, value] = result.value
        if (isGranted === 1) return granted(waiter, Number(value), sent)
        waiter.since = sent
        const next = Math.min(Number(value) + 2, askAgainMillis)
        if (waiter.timer !== undefined) timers.cancel(waiter.timer)
        waiter.timer = timers.at(timers.now() + next, () => ask(waiter))
      }
    )
  }

  const onMessage = (message: string) => {
    const [id, fence] = message.split(" ") as [string, string]
    const waiter = waiters.get(id)
    if (waiter === undefined) return
    // The grant came after the last ask that was told to wait. If that is long ago
    // for such a ttl, another ask starts the ttl again, and tells when.
    if (timers.now() - waiter.since > waiter.ttl / 10) ask(waiter)
    else granted(waiter, Number(fence), waiter.since)
  }

  /** Made when someone first waits; whoever waits must be heard of from then on. */
  let subscribed = false
  const subscribing = yield* Semaphore.make(1)
  const subscribe = Effect.suspend(() =>
    subscribed
      ? Effect.void
      : Effect.map(
          Scope.provide(
            redis.subscribe(channel, onMessage, () => {
              for (const waiter of [...waiters.values()]) ask(waiter)
            }),
            scope
          ),
          () => {
            subscribed = true
          }
        )
  ).pipe(subscribing.withPermits(1))

  const wait = (space: string, key: string, ttl: number): Effect.Effect<Grant, Unavailable> =>
    Effect.suspend(() => {
      let waiting: Waiter | undefined
      return Effect.callback<Grant, Unavailable>((resume) => {
        const waiter: Waiter = { ...request(space, key, ttl), timer: undefined, resume }
        waiting = waiter
        waiters.set(waiter.id, waiter)
        ask(waiter)
      }).pipe(
        Effect.onInterrupt(() =>
          Effect.suspend(() => {
            if (waiting === undefined) return Effect.void
            waiters.delete(waiting.id)
            if (waiting.timer !== undefined) timers.cancel(waiting.timer)
            return Effect.ignore(withdraw(waiting))
          })
        )
      )
    })

  return LockStore.of({
    system: "redis",
    tryAcquire: (space, key, ttl) =>
      Effect.suspend(() => {
        const asked = request(space, key, ttl)
        return Effect.map(
          Effect.tapError(redis.run<string>(Scripts.tryAcquire, asked.keys, [asked.id, asked.ttl, isCluster]), () =>
            Effect.sync(() => withdrawSoon(asked))
          ),
          (fence) => {
            if (fence === "") return undefined
            asked.state = "granted"
            asked.fence = Number(fence)
            return asked
          }
        )
      }),
    acquire: (space, key, ttl) =>
      subscribed ? wait(space, key, ttl) : Effect.andThen(subscribe, wait(space, key, ttl)),
    renew: (grant, ttl) => {
      const { id, keys } = grant as Request
      return Effect.map(redis.run<number>(Scripts.renew, keys, [id, millis(ttl)]), (renewed) => renewed === 1)
    },
    release: (grant) => {
      const held = grant as Request
      held.state = "over"
      return Effect.asVoid(redis.run(Scripts.release, held.keys, [held.id, isCluster]))
    }
  })
})

/**
 * Provides `LockStore`.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<LockStore, never, RedisConnection> = Layer.effect(LockStore, make)
