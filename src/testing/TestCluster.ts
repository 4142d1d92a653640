/**
 * A cluster in a unit test: instances of a host with plugins, in one process, on virtual time.
 *
 * ```ts
 * it.effect("a task cancelled elsewhere stops here", () =>
 *   Effect.gen(function* () {
 *     const cluster = yield* TestCluster.make(3, [AsyncTasks])
 *     const id = yield* cluster.on(0, Tasks.start("import"))
 *     yield* TestClock.adjust("1 second")
 *     yield* cluster.on(2, Tasks.cancel(id))
 *     yield* TestClock.adjust("1 second")
 *     assert.strictEqual(yield* cluster.on(0, Tasks.status(id)), "canceled")
 *   }).pipe(Effect.provide(TaskStoreMemory))
 * )
 * ```
 *
 * The instances are numbered from 0. Each has its own clock, scheduler, random numbers and services, and behaves as a
 * process would:
 *
 * - `stop` runs its finalizers. `crash` runs none: its fibers take no further step, what it holds stays held until
 *   the leases run out. `restart` starts it again under another id.
 * - `freeze` is what SIGSTOP does: no fiber takes a step and no timer fires, while the broker counts on. `thaw` lets
 *   it go on where it was, and it then sees what time it is.
 * - `partition` cuts instances off from the broker, `heal` ends it. Instances talk through the broker only, so
 *   a group is with the broker or alone, each instance of it for itself.
 *
 * Randomness has a seed, so a test does the same every time, as long as nothing in it leaves Effect's `Clock` and
 * `Scheduler`, for files or sockets say.
 *
 * @since 0.2.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as SecureRandom from "effect/crypto/SecureRandom"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as References from "effect/References"
import * as Schema from "effect/Schema"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import * as Cohort from "../layers/Cohort.ts"
import * as Instance from "../services/Instance.ts"
import * as Timers from "../services/internal/Timers.ts"
import * as Lock from "../services/Lock.ts"
import type * as Plugin from "../services/Plugin.ts"
import * as PluginHost from "../services/PluginHost.ts"
import * as Uuid from "../services/Uuid.ts"
import * as Backend from "./Backend.ts"
import { Network, type Policy } from "./internal/Network.ts"
import { Member } from "./internal/Member.ts"
import * as Observed from "./internal/observed.ts"
import { passingTime } from "./internal/passingTime.ts"
import { Prng } from "./internal/Prng.ts"
import { Process } from "./internal/Process.ts"
import type { Observation, Operation, StoreName, What } from "./Observation.ts"

/**
 * What an instance has beside what a test or a plugin brings.
 *
 * @since 0.2.0
 */
export type Services = Cohort.Services | PluginHost.PluginHost | SecureRandom.SecureRandom

/**
 * An effect was run on an instance that has stopped or crashed, or did so meanwhile. A defect, as no plugin expects it.
 *
 * @since 0.2.0
 */
export class InstanceDown extends Schema.TaggedError<InstanceDown>("cohort/testing/InstanceDown")("InstanceDown", {
  instance: Schema.Number,
  state: Schema.Literals(["starting", "stopped", "crashed"])
}) {
  override get message(): string {
    return `instance ${this.instance} ${this.state === "starting" ? "is starting" : `has ${this.state}`}`
  }
}

/**
 * Options of {@link make}.
 *
 * @since 0.2.0
 */
export interface Options<S = never, E = never, R = never> {
  /** Services that every instance has one of its own of, such as those that plugins use. Default: none. */
  readonly services?: Layer.Layer<S, E, R> | undefined
  /** What else an instance is told of itself, such as its worker mode. Default: nothing. */
  readonly instance?: ((index: number) => Pick<Instance.Options, "version" | "workerMode">) | undefined
  /** The application's name. Default `"test"`. */
  readonly app?: string | undefined
  /** Of everything random on the instances and between them. Default 0. */
  readonly seed?: number | string | undefined
  /** What the instances share. Default: the memory layers. */
  readonly backend?: Effect.Effect<Backend.Backend, never, Scope.Scope> | undefined
}

/**
 * Which operations a {@link TestCluster.fail} is about.
 *
 * @since 0.2.0
 */
export interface FailOptions {
  /** `before` it takes effect, or `after`, when the caller cannot know. Default `"before"`. */
  readonly when?: "before" | "after" | undefined
  /** How many operations fail; `Infinity` until `recover`. Default 1. */
  readonly times?: number | undefined
}

/**
 * A cluster. Everything that takes an instance takes its number.
 *
 * @since 0.2.0
 */
export interface TestCluster<S = never> {
  /** How many instances there are, whatever their state. */
  readonly size: number
  /**
   * Runs an effect with an instance's services. What it acquires for a `Scope` belongs to the instance: `stop`
   * releases it, `crash` loses it. On a frozen instance it waits; dies with {@link InstanceDown} when the instance
   * is down, or goes down meanwhile.
   */
  readonly on: <A, E, R>(
    instance: number,
    effect: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E, Exclude<R, Services | S | Scope.Scope>>
  readonly state: (instance: number) => "starting" | "running" | "frozen" | "stopped" | "crashed"
  /** The id an instance runs under: its number, and from the second start on which start it is (`"1.2"`). */
  readonly id: (instance: number) => string
  /**
   * Stops an instance cleanly, after thawing it if need be; what `on` runs there is interrupted first. Lets virtual time pass while it drains; what has not
   * stopped after 10 minutes is killed.
   */
  readonly stop: (instance: number) => Effect.Effect<void>
  /** Ends an instance as a kill would. */
  readonly crash: (instance: number) => Effect.Effect<void>
  /** Starts an instance again, after killing it if need be; dies when it does not start. */
  readonly restart: (instance: number) => Effect.Effect<void>
  readonly freeze: (instance: number) => Effect.Effect<void>
  readonly thaw: (instance: number) => Effect.Effect<void>
  /**
   * Puts groups of instances apart. The broker is with the group that names `"broker"`, else with the largest (of two as
   * large, the later). All others are cut off; instances that are in no group stay with the broker.
   */
  readonly partition: (...groups: ReadonlyArray<ReadonlyArray<number | "broker">>) => Effect.Effect<void>
  /** Ends every partition. */
  readonly heal: Effect.Effect<void>
  /** Sets an instance's wall clock ahead, or back; its monotonic clock stays. */
  readonly skew: (instance: number, by: Duration.Input) => Effect.Effect<void>
  /** How broadcasts and sync messages travel, on one channel or on all that have no policy of their own; `undefined` as they were. */
  readonly network: (
    policy: Policy | undefined,
    channel?: string | { readonly channel: string } | undefined
  ) => Effect.Effect<void>
  /** Makes operations of an instance's stores fail with `Unavailable`. */
  readonly fail: (instance: number, operation: Operation | StoreName, options?: FailOptions) => Effect.Effect<void>
  /** Ends what `fail` began, on all instances. */
  readonly recover: Effect.Effect<void>

  /** The locks that are held: by whom, with which fence, and who waits. */
  readonly locks: Effect.Effect<
    ReadonlyArray<{
      readonly key: string
      readonly holder: number
      readonly fence: number
      /** Milliseconds. */
      readonly expiresIn: number
      readonly waiters: ReadonlyArray<number>
    }>
  >
  /** The jobs that are queued, run or dead. */
  readonly jobs: (job?: { readonly channel: string }) => Effect.Effect<
    ReadonlyArray<{
      readonly channel: string
      readonly id: string
      readonly state: "ready" | "delayed" | "inFlight" | "dead"
      readonly payload: unknown
      readonly attempts: number
      readonly holder: number | undefined
      readonly lastError: string | undefined
    }>
  >
  /** The entries of the caches that are live, encoded. */
  readonly entries: (cache?: string) => Effect.Effect<
    ReadonlyArray<{
      readonly cache: string
      readonly key: string
      readonly value: unknown
      /** Milliseconds; `Infinity` without a ttl. */
      readonly expiresIn: number
    }>
  >
  /** The messages that were delivered so far, encoded, in order. */
  readonly delivered: (channel?: string | { readonly channel: string }) => Effect.Effect<
    ReadonlyArray<{
      readonly at: number
      readonly channel: string
      readonly from: number
      readonly to: number
      readonly message: unknown
    }>
  >
  /** Calls back with everything that happens, until the returned function is called. */
  readonly observe: (listener: (observation: Observation) => void) => () => void
}

type RequirementsOf<P> = P extends Plugin.Plugin<string, any, infer R> ? R : never

/**
 * Starts instances of a host with plugins. What the plugins and the services of an instance require beyond
 * Cohort's is taken from the test's context, and shared. They stop with the scope.
 *
 * @since 0.2.0
 */
export const make = <const Plugins extends ReadonlyArray<Plugin.Any>, S = never, E = never, R = never>(
  instances: number,
  plugins: Plugins,
  options: Options<S, E, R> = {}
): Effect.Effect<
  TestCluster<S>,
  PluginHost.PluginError | E,
  Exclude<RequirementsOf<Plugins[number]>, Services | S> | Exclude<R, Services> | Scope.Scope
> =>
  Effect.gen(function* () {
    const context = yield* Effect.context<never>()
    const clock = yield* Clock.clockWith(Effect.succeed)
    const scheduler = yield* Scheduler.Scheduler
    const timers = yield* Timers.make
    const runFork = Effect.runForkWith(context)
    const app = options.app ?? "test"
    const random = new Prng(`${options.seed ?? 0}`)
    const backend = yield* options.backend ?? Backend.memory
    const network = new Network(timers, new Prng(`${options.seed ?? 0} network`))
    /** One process for each start of each instance. */
    const newProcess = () => new Process(scheduler, clock, runFork)
    const listeners = new Set<(observation: Observation) => void>()
    const delivered: Array<Observation & { readonly _tag: "Delivered" }> = []
    const members: Array<Member> = []

    const indexOf = (id: string) => Number(id.split(".", 1)[0])
    const note = (instance: number, what: What) => {
      const observation: Observation = { at: timers.now(), instance, ...what }
      if (observation._tag === "Delivered") delivered.push(observation)
      for (const listener of listeners) listener(observation)
    }

    const probeOf = (member: Member, process: Process): Observed.Probe => ({
      now: timers.now,
      note: (what) => note(member.index, what),
      receive: (task) => process.receive(task),
      send: (channel, from, deliver) => network.send({ channel, from, to: member.id }, deliver),
      failing: (operation) => member.refuses(operation)
    })

    const layerOf = (member: Member, probe: Observed.Probe) => {
      const stores = Observed.stores(probe, member.id).pipe(Layer.provide(backend.layer))
      const locks = Layer.effect(
        Lock.Lock,
        Effect.map(Lock.Lock, (lock) => Observed.lock(lock, probe))
      )
      const primitives = Layer.provideMerge(locks, Cohort.layer.pipe(Layer.provide(stores)))
      return PluginHost.layer(plugins).pipe(
        Layer.provideMerge((options.services ?? Layer.empty) as Layer.Layer<S, E, Cohort.Services>),
        Layer.provideMerge(primitives),
        Layer.provideMerge(Instance.layer({ ...options.instance?.(member.index), app, id: member.id }))
      ) as unknown as Layer.Layer<S | Services, PluginHost.PluginError | E>
    }

    const ended = (member: Member) => () => {
      const { index, state } = member
      const down = state === "running" || state === "frozen" ? "stopped" : state
      return Effect.die(new InstanceDown({ instance: index, state: down }))
    }

    /** Runs an effect in the process of an instance as it is now. */
    const run = <A, E2, R2>(member: Member, effect: Effect.Effect<A, E2, R2>): Effect.Effect<A, E2, R2> =>
      Effect.contextWith((caller: Context.Context<R2>) =>
        member.state === "starting"
          ? ended(member)()
          : member.process.run(effect, Context.merge(caller, member.context), ended(member))
      )

    const start = (member: Member) =>
      Effect.gen(function* () {
        member.starts++
        member.id = member.starts === 1 ? `${member.index}` : `${member.index}.${member.starts}`
        member.ready = false
        // Whoever is cut off is so after a restart, too.
        if (member.cut) yield* backend.disconnect(member.id)
        const skew = member.process.skew
        const process = newProcess()
        process.skew = skew
        member.process = process
        member.scope = yield* Scope.make()
        const dice = new Prng(`${random.next()} ${member.id}`)
        member.context = Context.make(Clock.Clock, member.process.clock).pipe(
          Context.add(Scheduler.Scheduler, member.process.scheduler),
          Context.add(Random.Random, dice),
          Context.add(SecureRandom.SecureRandom, dice.secure()),
          Context.add(Uuid.Generator, dice.uuid),
          Context.add(Backend.Receive, (task) => process.receive(task)),
          Context.add(Scope.Scope, member.scope),
          Context.add(References.CurrentLogAnnotations, { instance: member.id })
        ) as Context.Context<never>
        const layer = layerOf(member, probeOf(member, member.process))
        const built = yield* member.process.run(
          Layer.buildWithMemoMap(layer, Layer.makeMemoMapUnsafe(), member.scope),
          Context.merge(context, member.context),
          ended(member)
        )
        member.context = Context.merge(member.context, built as Context.Context<never>)
        member.ready = true
        // Fibers that were forked get to begin: workers are there before the first job.
        yield* Effect.yieldNow
      }).pipe(Effect.onError(() => end(member, "crashed")))

    const end = (member: Member, state: "stopped" | "crashed") =>
      Effect.suspend(() => {
        member.process.end(state)
        return backend.crash(member.id)
      })

    /** A clean stop; the caller lets time pass. */
    const close = (member: Member) =>
      Effect.suspend(() => {
        if (!member.isUp) return Effect.void
        member.process.thaw()
        const { interruptRunning } = member.process
        const closing = Effect.andThen(interruptRunning, Scope.close(member.scope, Exit.void))
        return member.process
          .run(closing, Context.merge(context, member.context), () => Effect.interrupt)
          .pipe(Effect.exit, Effect.andThen(end(member, "stopped")))
      })
    /** A clean stop that lets time pass for as long as it takes, within reason. */
    const stop = (member: Member) => passingTime(clock, close(member), end(member, "crashed"))

    const memberOf = (instance: number): Member => {
      const member = members[instance]
      if (member === undefined) throw new Error(`there is no instance ${instance}: they are 0 to ${instances - 1}`)
      return member
    }
    const with_ = <A, E2, R2>(instance: number, f: (member: Member) => Effect.Effect<A, E2, R2>) =>
      Effect.suspend(() => f(memberOf(instance)))

    const inspected = <A>(look: (inspect: NonNullable<Backend.Backend["inspect"]>) => A) =>
      Effect.suspend(() =>
        backend.inspect === undefined
          ? Effect.die(new Error("this backend does not tell what it holds"))
          : Effect.succeed(look(backend.inspect))
      )

    yield* Effect.addFinalizer(() =>
      Effect.forEach(members, (member) => (member.process.state === "frozen" ? end(member, "crashed") : stop(member)))
    )
    for (let index = 0; index < instances; index++) {
      const member = new Member(index, newProcess(), yield* Scope.make(), Context.empty())
      members.push(member)
      yield* start(member)
    }

    const setCut = (member: Member, cut: boolean) => {
      if (member.cut === cut) return Effect.void
      member.cut = cut
      return cut ? backend.disconnect(member.id) : backend.reconnect(member.id)
    }

    const cluster: TestCluster<S> = {
      size: instances,
      on: (instance, effect) => with_(instance, (member) => run(member, effect)) as never,
      state: (instance) => memberOf(instance).state,
      id: (instance) => memberOf(instance).id,
      stop: (instance) => with_(instance, stop),
      crash: (instance) => with_(instance, (member) => (member.isUp ? end(member, "crashed") : Effect.void)),
      restart: (instance) =>
        with_(instance, (member) =>
          Effect.andThen(
            member.isUp ? end(member, "crashed") : Effect.void,
            Effect.orDie(start(member) as Effect.Effect<void, unknown>)
          )
        ),
      freeze: (instance) => with_(instance, ({ process }) => Effect.sync(() => process.freeze())),
      thaw: (instance) => with_(instance, ({ process }) => Effect.sync(() => process.thaw())),
      partition: (...groups) =>
        Effect.suspend(() => {
          const largest = Math.max(0, ...groups.map(({ length }) => length))
          const withBroker =
            groups.find((group) => group.includes("broker")) ?? groups.findLast((group) => group.length === largest)
          const away = groups.filter((group) => group !== withBroker).flat()
          return Effect.forEach(members, (member) => setCut(member, away.includes(member.index)), { discard: true })
        }),
      heal: Effect.suspend(() => Effect.forEach(members, (member) => setCut(member, false), { discard: true })),
      skew: (instance, by) =>
        with_(instance, ({ process }) =>
          Effect.sync(() => {
            process.skew = Duration.toMillis(Duration.fromInputUnsafe(by))
          })
        ),
      network: (policy, channel) =>
        Effect.sync(() => network.set(typeof channel === "object" ? channel.channel : channel, policy)),
      fail: (instance, operation, { times = 1, when = "before" } = {}) =>
        with_(instance, ({ failing }) =>
          Effect.sync(() => {
            failing.push({ operation, when, left: times })
          })
        ),
      recover: Effect.sync(() => {
        for (const member of members) member.failing = []
      }),
      locks: inspected(({ locks }) =>
        locks().map(({ holder, key, fence, expiresIn, waiters }) => ({
          ...{ key, holder: indexOf(holder), fence, expiresIn, waiters: waiters.map(indexOf) }
        }))
      ),
      jobs: (job) =>
        inspected(({ jobs }) =>
          jobs()
            .map(({ attempts, channel, holder, id, lastError, payload, state }) => ({
              ...{ channel: Observed.nameOf(channel), id, state, payload, attempts, lastError },
              holder: holder === undefined ? undefined : indexOf(holder)
            }))
            .filter(({ channel }) => job === undefined || channel === job.channel)
        ),
      entries: (cache) =>
        inspected(({ entries }) =>
          entries()
            .map(({ expiresIn, key, space, value }) => ({ cache: Observed.nameOf(space), key, value, expiresIn }))
            .filter((entry) => cache === undefined || entry.cache === cache)
        ),
      delivered: (channel) =>
        Effect.sync(() => {
          const name = typeof channel === "object" ? channel.channel : channel
          return delivered
            .filter((one) => name === undefined || one.channel === name)
            .map(({ at, channel, from, instance, message }) => ({
              ...{ at, channel, from: indexOf(from), to: instance, message }
            }))
        }),
      observe: (listener) => {
        listeners.add(listener)
        return () => listeners.delete(listener)
      }
    }
    return cluster
  }) as never
