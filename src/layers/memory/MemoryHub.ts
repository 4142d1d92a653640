/**
 * The shared memory of the instances in one process: what a broker is to the others.
 *
 * `Cohort.layerMemory` gives an instance a hub of its own. Instances that are
 * given one hub behave as one cluster:
 *
 * ```ts
 * const hub = yield* MemoryHub.make
 * const a = Cohort.layerMemory({ app: "shop", id: "a", hub })
 * const b = Cohort.layerMemory({ app: "shop", id: "b", hub })
 * ```
 *
 * An instance can be cut off with `disconnect` and comes back with `reconnect`.
 * Meanwhile its operations wait and then fail with `Unavailable`, its leases run
 * out, and it misses broadcasts, as if its broker had gone; `reconnect` surfaces
 * a gap. With `crash` it is gone for good, and nothing is released.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import { getOrMake } from "../../services/internal/getOrMake.ts"
import * as Timers from "../../services/internal/Timers.ts"
import * as Trampoline from "../../services/internal/Trampoline.ts"
import { Unavailable } from "../../services/Reason.ts"

/**
 * The shared memory. Only the memory stores use the members beside
 * `disconnect`, `reconnect` and `crash`.
 *
 * @since 0.1.0
 */
export class MemoryHub extends Context.Service<
  MemoryHub,
  {
    /** Cuts an instance off until `reconnect`; its id need not be known yet. */
    readonly disconnect: (instanceId: string) => Effect.Effect<void>
    /** Ends `disconnect`, and surfaces a gap to the instance's subscribers. */
    readonly reconnect: (instanceId: string) => Effect.Effect<void>
    /**
     * Ends an instance as a kill would: its subscriptions are gone and its waiters are passed over, but what it
     * holds stays held until the lease runs out. Its operations fail from then on.
     */
    readonly crash: (instanceId: string) => Effect.Effect<void>
    /** The connection of one instance. */
    readonly link: (instanceId: string) => Link
    /** The part of the memory that one kind of store keeps, made when first asked for. */
    readonly part: <A>(name: string, make: () => A) => A
    readonly timers: Timers.Timers
    /**
     * Runs a task now, or after the running one: what one instance causes in
     * others happens one after the other, never inside each other.
     */
    readonly enqueue: (task: () => void) => void
  }
>()("cohort/layers/memory/MemoryHub") {}

/**
 * One instance's connection to the hub.
 *
 * @since 0.1.0
 */
export class Link {
  connected = true
  /** Set for good when its instance is killed. */
  crashed = false
  private readonly bound: Duration.Duration
  private waiting = new Set<() => void>()
  private readonly reconnected = new Set<() => void>()

  constructor(bound: Duration.Duration) {
    this.bound = bound
  }

  /**
   * Runs an operation in the call, as ports allow; without connection, an effect
   * that waits for it and fails with `Unavailable` when the bound passes.
   */
  run<A>(operation: () => A): Effect.Effect<A, Unavailable> {
    return this.connected ? Exit.succeed(operation()) : Effect.flatMap(this.awaitConnected, () => this.run(operation))
  }

  /** Like {@link run}, for an operation that waits for something else than the connection. */
  runEffect<A, E>(operation: () => Effect.Effect<A, E>): Effect.Effect<A, E | Unavailable> {
    return this.connected ? operation() : Effect.flatMap(this.awaitConnected, () => this.runEffect(operation))
  }

  private readonly awaitConnected: Effect.Effect<void, Unavailable> = Effect.suspend(() =>
    this.crashed
      ? Effect.fail(new Unavailable({ backend: "memory", detail: "the instance has crashed" }))
      : this.awaitReconnect
  )

  private readonly awaitReconnect = Effect.suspend(() =>
    Effect.timeoutOrElse(
      Effect.callback<void>((resume) => {
        const wake = () => resume(Effect.void)
        this.waiting.add(wake)
        return Effect.sync(() => this.waiting.delete(wake))
      }),
      {
        duration: this.bound,
        orElse: () =>
          Effect.fail(new Unavailable({ backend: "memory", detail: `no answer within ${Duration.format(this.bound)}` }))
      }
    )
  )

  /** Calls back after every reconnect, until the returned function is called. */
  onReconnect(listener: () => void): () => void {
    this.reconnected.add(listener)
    return () => this.reconnected.delete(listener)
  }

  disconnect() {
    this.connected = false
  }

  crash() {
    this.crashed = true
    this.connected = false
    this.waiting.clear()
    this.reconnected.clear()
  }

  reconnect() {
    if (this.connected || this.crashed) return
    this.connected = true
    const waiting = this.waiting
    this.waiting = new Set()
    // The gap comes first: what waited for the connection follows it.
    for (const listener of [...this.reconnected]) listener()
    for (const wake of waiting) wake()
  }
}

/**
 * Makes a hub that lives as long as the scope. `operationTimeout` is how long an
 * operation of a disconnected instance waits before it fails; default 5 seconds.
 *
 * @since 0.1.0
 */
export const makeWith = (options: {
  readonly operationTimeout?: Duration.Input | undefined
}): Effect.Effect<MemoryHub["Service"], never, Scope.Scope> =>
  Effect.gen(function* () {
    const bound = Duration.fromInputUnsafe(options.operationTimeout ?? "5 seconds")
    const timers = yield* Timers.make
    const links = new Map<string, Link>()
    const parts = new Map<string, unknown>()
    const enqueue = yield* Trampoline.make

    const link = (instanceId: string): Link => getOrMake(links, instanceId, () => new Link(bound))

    return MemoryHub.of({
      disconnect: (instanceId) => Effect.sync(() => link(instanceId).disconnect()),
      reconnect: (instanceId) => Effect.sync(() => link(instanceId).reconnect()),
      crash: (instanceId) => Effect.sync(() => link(instanceId).crash()),
      link,
      part: <A>(name: string, make: () => A): A => getOrMake<string, unknown>(parts, name, make) as A,
      timers,
      enqueue
    })
  })

/**
 * Makes a hub with the default options.
 *
 * @since 0.1.0
 */
export const make: Effect.Effect<MemoryHub["Service"], never, Scope.Scope> = makeWith({})

/**
 * Provides a hub.
 *
 * @since 0.1.0
 */
export const layer: Layer.Layer<MemoryHub> = Layer.effect(MemoryHub, make)
