/**
 * Distributed locks with leases and fencing tokens.
 *
 * ```ts
 * yield* Lock.runExclusive("fields:orders", removeField, { ttl: "10 seconds" })
 * ```
 *
 * Guarantees:
 *
 * - **Exclusion.** Never two holders of a key while the backend keeps its promises.
 * - **Order.** First come, first served across instances. Waiters are woken, not polled.
 * - **Leases.** A lease is renewed every third of its `ttl` while its holder's scope is
 *   open. `ttl` (default 30 seconds) bounds how long a dead holder blocks the others.
 * - **Loss.** A lease is lost when a renewal is refused, or when `ttl` has passed on
 *   the monotonic clock since before the last successful request was sent.
 *   `runExclusive` then interrupts its work and fails with `LockLost`; with `acquire`,
 *   `lease.lost` is the signal.
 * - **Fencing.** `lease.fence` strictly increases per key over every grant. Hand it to
 *   the storage the lock protects to refuse writers that come too late.
 * - **Tidiness.** Interrupting a waiter leaves no trace, also when it races the grant.
 *   Releasing a lease that has expired neither fails nor touches the new holder.
 *
 * Locks are not re-entrant: asking again for a key one already holds waits for oneself.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { Defaults } from "./Defaults.ts"
import { Instance } from "./Instance.ts"
import { awaitStop } from "./internal/fibers.ts"
import { settled } from "./internal/settled.ts"
import * as Timers from "./internal/Timers.ts"
import { traced } from "./internal/telemetry.ts"
import * as Validate from "./internal/validate.ts"
import { type Grant, type HeldLock, LockStore } from "./LockStore.ts"
import * as Metrics from "./Metrics.ts"
import { InvalidInput, Unavailable } from "./Reason.ts"

/**
 * The lease ended before its holder released it: a renewal was refused, or its ttl passed.
 *
 * @since 0.1.0
 */
export class LockLost extends Schema.TaggedError<LockLost>("cohort/LockLost")("LockLost", {
  key: Schema.String,
  fence: Schema.Number
}) {
  override get message(): string {
    return `the lease of "${this.key}" (fence ${this.fence}) was lost`
  }
}

/**
 * What can go wrong with a lock. `reason` tells which: `InvalidInput`, `Unavailable` or `LockLost`.
 *
 * @since 0.1.0
 */
export class LockError extends Schema.TaggedError<LockError>("cohort/LockError")("LockError", {
  reason: Schema.Union([InvalidInput, Unavailable, LockLost])
}) {
  override readonly cause: unknown = this.reason.cause
  override get message(): string {
    return this.reason.message
  }
}

/**
 * A lock held.
 *
 * @since 0.1.0
 */
export interface Lease {
  /** The key as the caller gave it. */
  readonly key: string
  /** Strictly increases per key with every grant. */
  readonly fence: number
  /** Starts the ttl again, optionally with another length. Fails with `LockLost` when it is too late. */
  readonly extend: (ttl?: Duration.Input) => Effect.Effect<void, LockError>
  /** Waits until the lease is lost; never completes when it is released in time. */
  readonly lost: Effect.Effect<LockLost>
  /** Whether the lease is held: neither released nor lost. */
  readonly isHeld: Effect.Effect<boolean>
}

/**
 * Options of a lease.
 *
 * @since 0.1.0
 */
export interface LeaseOptions {
  /** How long a dead holder blocks the others; positive and finite. Default 30 seconds. */
  readonly ttl?: Duration.Input | undefined
  /** Renew every third of the ttl while the scope is open. Default `true`. */
  readonly renew?: boolean | undefined
}

/**
 * Options of {@link tryAcquire}.
 *
 * @since 0.1.0
 */
export interface TryOptions extends LeaseOptions {
  /** How long to wait for the lock. Default 0: never waits. `Infinity` waits like `acquire`. */
  readonly timeout?: Duration.Input | undefined
}

/**
 * Locks by key. See the module for the guarantees; the module functions of the
 * same names call this service.
 *
 * @since 0.1.0
 */
export class Lock extends Context.Service<
  Lock,
  {
    readonly acquire: (key: string, options?: LeaseOptions) => Effect.Effect<Lease, LockError, Scope.Scope>
    readonly tryAcquire: (
      key: string,
      options?: TryOptions
    ) => Effect.Effect<Option.Option<Lease>, LockError, Scope.Scope>
    readonly runExclusive: <A, E, R>(
      key: string,
      work: Effect.Effect<A, E, R> | ((lease: Lease) => Effect.Effect<A, E, R>),
      options?: LeaseOptions
    ) => Effect.Effect<A, E | LockError, R>
    readonly list: Effect.Effect<ReadonlyArray<HeldLock>, LockError>
  }
>()("cohort/services/Lock") {}

/**
 * Waits for the lock and holds it until the scope closes.
 *
 * @since 0.1.0
 */
export const acquire = (key: string, options?: LeaseOptions): Effect.Effect<Lease, LockError, Lock | Scope.Scope> =>
  Lock.use((lock) => lock.acquire(key, options))

/**
 * Takes the lock if that is possible within `timeout` (default 0), and holds it
 * until the scope closes; `None` when the time is up.
 *
 * @since 0.1.0
 */
export const tryAcquire = (
  key: string,
  options?: TryOptions
): Effect.Effect<Option.Option<Lease>, LockError, Lock | Scope.Scope> =>
  Lock.use((lock) => lock.tryAcquire(key, options))

/**
 * Waits for the lock and runs `work` while holding it.
 *
 * When the lease is lost, `work` is interrupted and the effect fails with
 * `LockLost` as soon as `work` has stopped; work that does not stop within
 * 5 seconds is left behind with a warning.
 *
 * @since 0.1.0
 */
export const runExclusive = <A, E, R>(
  key: string,
  work: Effect.Effect<A, E, R> | ((lease: Lease) => Effect.Effect<A, E, R>),
  options?: LeaseOptions
): Effect.Effect<A, E | LockError, R | Lock> => Lock.use((lock) => lock.runExclusive(key, work, options))

/**
 * The locks of the app that are held, by key: for people who look. It may look at everything there is on the
 * backend; each lock is as it was when it was looked at.
 *
 * @since 0.2.0
 */
export const list: Effect.Effect<ReadonlyArray<HeldLock>, LockError, Lock> = Lock.use((lock) => lock.list)

const defaultTtl = 30_000

/** A lease and its clockwork: it is the timer that first renews, then ends it. */
class Held extends Timers.Timer implements Lease {
  readonly key: string
  readonly fence: number
  private readonly env: Env
  private readonly grant: Grant
  private readonly renews: boolean
  private ttl: number
  private deadline: number
  private state: "held" | "released" | "lost" = "held"
  private renewing = false
  /** Most leases have one listener: their `runExclusive`. */
  private listener: ((reason: LockLost) => void) | undefined = undefined
  private listeners: ReadonlyArray<(reason: LockLost) => void> = []

  constructor(env: Env, key: string, grant: Grant, ttl: number, renews: boolean) {
    super()
    this.env = env
    this.key = key
    this.fence = grant.fence
    this.grant = grant
    this.ttl = ttl
    this.renews = renews
    this.deadline = grant.since + ttl
    env.timers.start(this, grant.since + (renews ? ttl / 3 : ttl))
  }

  run() {
    if (this.state !== "held") return
    const now = this.env.timers.now()
    if (now >= this.deadline) return this.lose()
    if (this.renews && !this.renewing) {
      this.renewing = true
      this.env.runFork(this.renew(this.ttl)).addObserver((exit) => {
        this.renewing = false
        // Unreachable: try again soon, until the deadline decides.
        if (this.state === "held" && Exit.isFailure(exit)) this.rearm(this.ttl / 10)
      })
    }
    if (this.renewing) this.rearm(this.deadline - now)
  }

  private rearm(delay: number) {
    this.env.timers.start(this, Math.min(this.env.timers.now() + delay, this.deadline))
  }

  /** Renews; when refused, the lease is lost. */
  private renew(ttl: number): Effect.Effect<void, Unavailable> {
    return Effect.suspend(() => {
      const sent = this.env.timers.now()
      return Effect.map(this.env.store.renew(this.grant, ttl), (granted) => {
        if (this.state !== "held") return
        if (!granted) return this.lose()
        this.ttl = ttl
        this.deadline = sent + ttl
        this.rearm(this.renews ? sent + ttl / 3 - this.env.timers.now() : ttl)
      })
    })
  }

  private lose() {
    this.state = "lost"
    this.env.timers.cancel(this)
    const lost = this.lostReason()
    const { listener, listeners } = this
    this.listener = undefined
    this.listeners = []
    listener?.(lost)
    for (const listener of listeners) listener(lost)
    this.env.runFork(
      Effect.logWarning("Lock lease lost").pipe(
        Effect.annotateLogs({ lock: this.key, fence: this.fence, instance: this.env.instance }),
        Effect.andThen(Metric.update(Metrics.leasesLost, 1))
      )
    )
  }

  lostReason(): LockLost {
    return new LockLost({ key: this.key, fence: this.fence })
  }

  /** Calls back when the lease is lost; at once if it already is. */
  onLost(listener: (reason: LockLost) => void) {
    if (this.state === "lost") listener(this.lostReason())
    else if (this.listener === undefined) this.listener = listener
    else this.listeners = [...this.listeners, listener]
  }

  offLost(listener: (reason: LockLost) => void) {
    if (this.listener === listener) this.listener = undefined
    else this.listeners = this.listeners.filter((other) => other !== listener)
  }

  /** Whether the lease covers this moment, also when the process was frozen past the deadline. */
  covers(): boolean {
    if (this.state === "held" && this.env.timers.now() >= this.deadline) this.lose()
    return this.state === "held"
  }

  /** `undefined` when it is done already. */
  release(): Effect.Effect<void> | undefined {
    this.env.timers.cancel(this)
    if (this.state === "held") this.state = "released"
    // Asked even when lost: the backend ignores a grant that is over, and may hold one that is not.
    const released = this.env.store.release(this.grant)
    if (settled(released) !== undefined) return undefined
    return Effect.catch(released, (reason) =>
      Effect.logWarning("Lock not released; it expires with its ttl", reason.message).pipe(
        Effect.annotateLogs({ lock: this.key, fence: this.fence, instance: this.env.instance })
      )
    )
  }

  extend(ttl?: Duration.Input): Effect.Effect<void, LockError> {
    return Effect.suspend(() => {
      const millis = ttl === undefined ? this.ttl : Validate.millis("ttl", ttl)
      if (typeof millis !== "number") return fail(millis)
      if (!this.covers()) return fail(this.lostReason())
      return Effect.flatMap(Effect.mapError(this.renew(millis), wrapError), () =>
        this.state === "held" ? Effect.void : fail(this.lostReason())
      )
    })
  }

  get lost(): Effect.Effect<LockLost> {
    return Effect.callback<LockLost>((resume) => {
      const listener = (reason: LockLost) => resume(Effect.succeed(reason))
      this.onLost(listener)
      return Effect.sync(() => this.offLost(listener))
    })
  }

  get isHeld(): Effect.Effect<boolean> {
    return Effect.sync(() => this.covers())
  }
}

interface Env {
  /** Id of the instance. */
  readonly instance: string
  readonly store: LockStore["Service"]
  readonly timers: Timers.Timers
  readonly runFork: <A, E>(effect: Effect.Effect<A, E>) => Fiber.Fiber<A, E>
}

/**
 * Makes the service on the {@link LockStore} in context.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<Lock["Service"], never, LockStore | Instance | Scope.Scope> = Effect.gen(function* () {
  const store = yield* LockStore
  const { app, id } = yield* Instance
  const defaults = yield* Defaults
  const timers = yield* Timers.make
  const runFork = Effect.runForkWith(yield* Effect.context<never>())
  const env: Env = { instance: id, store, timers, runFork }
  const space = Validate.address(app, "lock")

  const span = <A>(key: string, effect: Effect.Effect<A, Unavailable>) =>
    traced(store.system, "Lock.acquire", { "lock.key": key }, effect)

  const hold = (key: string, grant: Grant, ttl: number, options: LeaseOptions | undefined): Held =>
    new Held(env, key, grant, ttl, options?.renew !== false)

  /** Holds what `request` is granted until the scope closes. Runs uninterruptibly, but for the request's waiting. */
  const scoped = (
    key: string,
    options: LeaseOptions | undefined,
    request: (ttl: number) => Effect.Effect<Grant | undefined, Unavailable>
  ): Effect.Effect<Held | undefined, LockError, Scope.Scope> => {
    const ttl = ttlOf(options, defaults)
    const invalid = Validate.lockKey(key) ?? Validate.invalidOf(ttl)
    if (invalid !== undefined) return fail(invalid)
    return Effect.flatMap(Effect.mapError(span(key, request(ttl as number)), wrapError), (grant) => {
      if (grant === undefined) return Effect.undefined
      const held = hold(key, grant, ttl as number, options)
      return Effect.as(
        Effect.addFinalizer(() => held.release() ?? Effect.void),
        held
      )
    })
  }

  return Lock.of({
    list: Effect.suspend(() =>
      store.list === undefined
        ? fail(new Unavailable({ backend: store.system, detail: "it cannot list locks" }))
        : Effect.mapBoth(store.list(space), {
            onFailure: wrapError,
            onSuccess: (locks) => [...locks].sort((a, b) => (a.key < b.key ? -1 : 1))
          })
    ),

    acquire: (key, options) =>
      Effect.uninterruptibleMask((restore) =>
        Effect.map(
          scoped(key, options, (ttl) => restore(store.acquire(space, key, ttl))),
          (held) => held!
        )
      ),

    tryAcquire: (key, options) =>
      Effect.uninterruptibleMask((restore) => {
        const timeout = Validate.millis("timeout", options?.timeout ?? 0, { zero: true, infinity: true })
        if (typeof timeout !== "number") return fail(timeout)
        return Effect.map(
          scoped(key, options, (ttl) =>
            timeout === 0
              ? store.tryAcquire(space, key, ttl)
              : restore(
                  Effect.timeoutOrElse<Grant | undefined, Unavailable, never, undefined, never, never>(
                    store.acquire(space, key, ttl),
                    { duration: timeout, orElse: () => Effect.undefined }
                  )
                )
          ),
          Option.fromUndefinedOr
        )
      }),

    runExclusive: <A, E, R>(
      key: string,
      work: Effect.Effect<A, E, R> | ((lease: Lease) => Effect.Effect<A, E, R>),
      options?: LeaseOptions
    ) =>
      Effect.withFiber<A, E | LockError, R>((caller) => {
        const ttl = ttlOf(options, defaults)
        const invalid = Validate.lockKey(key) ?? Validate.invalidOf(ttl)
        if (invalid !== undefined) return fail(invalid)
        const guard: Guard<A, E, R> = { env, caller, interruptible: isInterruptible(caller), work }
        const held = (grant: Grant) => hold(key, grant, ttl as number, options)

        // Granted in the call: nothing can come between the grant and its release.
        if (store.request !== undefined) {
          const taken = settled(store.tryAcquire(space, key, ttl as number))
          if (taken?.value !== undefined) return runProtected(guard, held(taken.value))
          if (taken !== undefined) return queueProtected(guard, store.request, space, key, ttl as number, held)
        }
        const granted = store.acquire(space, key, ttl as number)
        const waited = guard.interruptible ? Effect.interruptible(granted) : granted
        return Effect.uninterruptible(
          Effect.flatMap(Effect.mapError(span(key, waited), wrapError), (grant) => runProtected(guard, held(grant)))
        )
      })
  })
})

const fail = (reason: InvalidInput | Unavailable | LockLost) => Effect.fail(new LockError({ reason }))
const wrapError = (reason: Unavailable) => new LockError({ reason })

const ttlOf = (options: LeaseOptions | undefined, { lockTtl }: Defaults): number | InvalidInput => {
  const ttl = options?.ttl ?? lockTtl
  return ttl === undefined ? defaultTtl : Validate.millis("ttl", ttl)
}

/** Whether a fiber can be interrupted where it stands. */
const isInterruptible = (fiber: Fiber.Fiber<unknown, unknown>): boolean =>
  (fiber as unknown as { readonly interruptible: boolean }).interruptible

/** Work to protect, and for whom. */
interface Guard<A, E, R> {
  readonly env: Env
  readonly caller: Fiber.Fiber<unknown, unknown>
  /** Whether the caller could be interrupted where it asked. */
  readonly interruptible: boolean
  readonly work: Effect.Effect<A, E, R> | ((lease: Lease) => Effect.Effect<A, E, R>)
}

const uninterruptible = { uninterruptible: true }

/**
 * Starts the work in a fiber of its own, so that losing the lease can interrupt it
 * without touching the caller. Work that does not wait costs no scheduling.
 */
const start = <A, E, R>({ caller, interruptible, work }: Guard<A, E, R>, held: Held): Fiber.Fiber<A, E> =>
  Effect.runForkWith(caller.context as Context.Context<R>)(
    typeof work === "function" ? Effect.suspend(() => work(held)) : work,
    interruptible ? undefined : uninterruptible
  )

/** What the work's exit is worth: one that comes after the deadline was not protected, even if nothing noticed yet. */
const answerOf = <A, E>(held: Held, exit: Exit.Exit<A, E>): Exit.Exit<A, E | LockError> =>
  held.covers() ? exit : Exit.fail(new LockError({ reason: held.lostReason() }))

/** The release on its way, in a fiber that nobody interrupts; `undefined` when it is done already. */
const release = (env: Env, held: Held): Fiber.Fiber<void> | undefined => {
  const released = held.release()
  if (released === undefined) return undefined
  const fiber = env.runFork(released)
  return fiber.pollUnsafe() === undefined ? fiber : undefined
}

/**
 * Releases the lease when the work has ended, whatever becomes of the caller, and
 * then answers; answers earlier when the lease is lost and the work has stopped.
 * Returns what stops the work. Only the first answer counts.
 */
const follow = <A, E>(
  env: Env,
  held: Held,
  fiber: Fiber.Fiber<A, E>,
  resume: (answer: Effect.Effect<A, E | LockError>) => void
): (() => Effect.Effect<void>) => {
  let releasing: Fiber.Fiber<void> | undefined
  const stop = () =>
    Effect.flatMap(awaitStop(fiber, `work under lock "${held.key}"`), () =>
      releasing === undefined ? Effect.void : Effect.asVoid(Fiber.await(releasing))
    )
  held.onLost((reason) => resume(Effect.andThen(stop(), fail(reason))))
  fiber.addObserver((exit) => {
    const answer = answerOf(held, exit)
    releasing = release(env, held)
    if (releasing === undefined) resume(answer)
    else releasing.addObserver(() => resume(answer))
  })
  return stop
}

/** Runs the work under a lease that is held. */
const runProtected = <A, E, R>(guard: Guard<A, E, R>, held: Held): Effect.Effect<A, E | LockError, R> => {
  const { caller, env, interruptible } = guard
  const fiber = start(guard, held)
  const done = fiber.pollUnsafe()
  if (done !== undefined) {
    const answer = answerOf(held, done)
    const releasing = release(env, held)
    return releasing === undefined ? answer : Effect.andThen(Fiber.await(releasing), answer)
  }

  let answer: Effect.Effect<A, E | LockError> | undefined
  let resume = (first: Effect.Effect<A, E | LockError>) => {
    answer ??= first
  }
  const stop = follow(env, held, fiber, (answer) => resume(answer))
  // A caller that is interrupted before it gets to wait below still takes the work with it.
  const forget = caller.addObserver(() => fiber.interruptUnsafe())
  const wait = Effect.callback<A, E | LockError>((waiting) => {
    forget()
    if (answer !== undefined) return waiting(answer)
    resume = waiting
    return Effect.suspend(stop)
  })
  return interruptible ? Effect.interruptible(wait) : wait
}

/** Waits for a lease and runs the work under it: for the caller it is one wait, from asking to the work's end. */
const queueProtected = <A, E, R>(
  guard: Guard<A, E, R>,
  request: NonNullable<LockStore["Service"]["request"]>,
  space: string,
  key: string,
  ttl: number,
  held: (grant: Grant) => Held
): Effect.Effect<A, E | LockError> =>
  Effect.callback<A, E | LockError>((resume) => {
    const { env } = guard
    let stop: (() => Effect.Effect<void>) | undefined
    const enter = (grant: Grant) => {
      const lease = held(grant)
      stop = follow(env, lease, start(guard, lease), resume)
    }
    const withdraw = request(space, key, ttl, (granted) => {
      const known = settled(granted)
      if (known !== undefined) return enter(known.value)
      const asking = env.runFork(granted)
      stop = () => Fiber.interrupt(asking)
      asking.addObserver((exit) =>
        exit._tag === "Success" ? enter(exit.value) : resume(Effect.mapError(Effect.failCause(exit.cause), wrapError))
      )
    })
    return guard.interruptible ? Effect.suspend(() => (stop === undefined ? Effect.sync(withdraw) : stop())) : undefined
  })

/**
 * Provides {@link Lock} on the {@link LockStore} in context.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<Lock, never, LockStore | Instance> = Layer.effect(Lock, make)
