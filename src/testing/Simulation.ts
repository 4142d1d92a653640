/**
 * Random schedules of operations and faults, on virtual time, that can be run again.
 *
 * ```ts
 * it.effect("a counter under a lock counts right", () =>
 *   Simulation.run({
 *     seed: 42,
 *     instances: 3,
 *     plugins: [Counting],
 *     shared: CounterStore.layerMemory,
 *     workload: { increment: Counter.increment, read: Counter.read },
 *     faults: ["crash", "freeze", "partition"],
 *     invariants: [...Invariant.primitives, Invariant.converges("counters", Counter.read)],
 *     steps: 200
 *   })
 * )
 * ```
 *
 * Each step runs an operation of the workload on some instance, or does something to an instance. Operations go on beside
 * each other; what they fail with is their business, but one that dies (of an assertion, say) fails the simulation.
 * After the last step every fault ends, and the cluster has time to recover.
 *
 * The same seed gives the same run, always and on every Node: same order of all steps of all fibers, same ids, same jitter. What
 * leaves Effect's `Clock`, `Random`, `SecureRandom`, `Uuid` and `Scheduler` is not part of that: promises that need no more
 * than their turn are waited for, files and sockets are not.
 *
 * A failure tells the seed, the schedule shrunk to what is needed, and what happened on each instance. The text of a
 * schedule can be run again as `schedule`, to be kept as a test.
 *
 * @since 0.2.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type * as Plugin from "../services/Plugin.ts"
import type * as Backend from "./Backend.ts"
import type { Invariant } from "./Invariant.ts"
import { Prng } from "./internal/Prng.ts"
import * as Schedule from "./internal/Schedule.ts"
import { shrink } from "./internal/shrink.ts"
import { type Outcome, play } from "./internal/play.ts"
import type * as TestCluster from "./TestCluster.ts"

/**
 * An operation of a workload, or one with how often it comes up among the others (default 1).
 *
 * @since 0.2.0
 */
export type Operation = Effect.Effect<any, any, any> | Weighted

/**
 * @since 0.2.0
 */
export interface Weighted {
  readonly weight: number
  readonly run: Effect.Effect<any, any, any>
}

/**
 * A kind of fault.
 *
 * @since 0.2.0
 */
export type Fault = Schedule.Fault

/**
 * The faults that no plugin should mind: all but those that a network between an instance and its broker does
 * not have.
 *
 * @since 0.2.0
 */
export const faults: ReadonlyArray<Fault> = ["crash", "stop", "freeze", "partition", "skew", "refusal", "delay"]

/**
 * Options of {@link run}.
 *
 * @since 0.2.0
 */
export interface Options<
  Plugins extends ReadonlyArray<Plugin.Any>,
  Workload extends { readonly [name: string]: Operation },
  Invariants extends ReadonlyArray<Invariant<any>>,
  S,
  SR,
  Shared
> {
  /** Default: a random one, that a failure tells. */
  readonly seed?: number | undefined
  /** How many. Default 3. */
  readonly instances?: number | undefined
  readonly plugins: Plugins
  /** Services that every instance has one of its own of. Default: none. */
  readonly services?: Layer.Layer<S, any, SR> | undefined
  /** Services that all instances share, such as a database; new for every run. Default: none. */
  readonly shared?: Layer.Layer<Shared, any> | undefined
  /** What else an instance is told of itself. Default: nothing. */
  readonly instance?: TestCluster.Options["instance"]
  /** By name, what is done on instances. `Random` has a seed of its own in each step. */
  readonly workload: Workload
  /** Default: {@link faults}. */
  readonly faults?: ReadonlyArray<Fault> | undefined
  /** The chance that a step is a fault. Default 0.2. */
  readonly faultRate?: number | undefined
  readonly invariants: Invariants
  /** How many. Default 100. */
  readonly steps?: number | undefined
  /** Mean time between steps. Default 1 second. */
  readonly pace?: Duration.Input | undefined
  /** How long operations may go on when every fault has ended. Default 5 minutes. */
  readonly within?: Duration.Input | undefined
  /** Runs this schedule, the text that a failure told, instead of a random one. */
  readonly schedule?: string | undefined
  /** How many runs may be spent on shrinking a schedule that failed. Default 200. */
  readonly shrinkRuns?: number | undefined
  /** What the instances share. Default: the memory layers. */
  readonly backend?: Effect.Effect<Backend.Backend, never, Scope.Scope> | undefined
}

/**
 * A run in which everything held.
 *
 * @since 0.2.0
 */
export interface Report {
  readonly seed: number
  /** The schedule as text. */
  readonly schedule: string
  /** Virtual milliseconds that passed. */
  readonly millis: number
  /** Rendered when asked for. */
  readonly timeline: () => string
}

/**
 * Something did not hold. `message` has all of it.
 *
 * @since 0.2.0
 */
export class SimulationFailed extends Schema.TaggedError<SimulationFailed>("cohort/testing/SimulationFailed")(
  "SimulationFailed",
  {
    seed: Schema.Number,
    /** The name of what did not hold. */
    invariant: Schema.String,
    /** In what way, in the run of the shrunk schedule. */
    detail: Schema.String,
    /** How many steps had been taken when the drawn schedule failed. */
    steps: Schema.Number,
    /** The shrunk schedule, as text. */
    schedule: Schema.String,
    timeline: Schema.String
  }
) {
  override get message(): string {
    const { detail, invariant, schedule, seed, steps, timeline } = this
    return [
      `${invariant}: ${detail}`,
      `seed ${seed}, after ${steps} steps; shrunk to ${schedule === "" ? 0 : schedule.split("\n").length}:`,
      "",
      schedule.replaceAll(/^/gm, "  "),
      "",
      timeline
    ].join("\n")
  }
}

type RequirementsOf<P> = P extends Plugin.Plugin<string, any, infer R> ? R : never
type NeededBy<W> =
  W extends Effect.Effect<any, any, infer R>
    ? R
    : W extends { readonly run: Effect.Effect<any, any, infer R> }
      ? R
      : never
type NeededToHold<I> = I extends Invariant<infer R> ? R : never

/**
 * Runs a simulation; fails with {@link SimulationFailed} when an invariant does not hold, when an operation dies or never
 * ends, or when an instance does not start or stop.
 *
 * What plugins, operations and invariants require beyond the instances' services comes from `shared`. What
 * is left comes from the caller, and is then shared by all runs, also those that shrink: it must not remember anything.
 *
 * @since 0.2.0
 */
export const run = <
  const Plugins extends ReadonlyArray<Plugin.Any>,
  const Workload extends { readonly [name: string]: Operation },
  const Invariants extends ReadonlyArray<Invariant<any>>,
  S = never,
  SR = never,
  Shared = never
>(
  options: Options<Plugins, Workload, Invariants, S, SR, Shared>
): Effect.Effect<
  Report,
  SimulationFailed,
  Exclude<
    | Exclude<RequirementsOf<Plugins[number]> | NeededBy<Workload[keyof Workload]>, S>
    | Exclude<NeededToHold<Invariants[number]>, S>
    | SR,
    TestCluster.Services | Shared | Scope.Scope
  >
> =>
  Effect.gen(function* () {
    const seed = options.seed ?? (yield* Random.nextIntBetween(0, 999_999_999))
    const instances = options.instances ?? 3
    const workload = Object.entries(options.workload).map(([name, operation]) =>
      "weight" in operation ? { name, ...operation } : { name, weight: 1, run: operation }
    )
    const steps =
      options.schedule !== undefined
        ? Schedule.fromText(options.schedule)
        : Schedule.draw(new Prng(`${seed} schedule`), {
            instances,
            steps: options.steps ?? 100,
            workload: workload.map(({ name, weight }) => [name, weight] as const),
            faults: options.faults ?? faults,
            faultRate: options.faultRate ?? 0.2,
            pace: millis(options.pace ?? "1 second")
          })
    const context = yield* Effect.context<never>()
    const playSteps = (steps: ReadonlyArray<Schedule.Step>): Effect.Effect<Outcome> =>
      play({
        ...{ seed, instances, steps, context, plugins: options.plugins, invariants: options.invariants },
        ...{ services: options.services, shared: options.shared, backend: options.backend, instance: options.instance },
        operations: new Map(workload.map(({ name, run }) => [name, run])),
        within: millis(options.within ?? "5 minutes")
      })

    const drawn = yield* playSteps(steps)
    if (drawn.violation === undefined) {
      const { now: millis, timeline } = drawn
      return { seed, schedule: Schedule.toText(steps), millis, timeline: () => timeline.render() }
    }
    const { invariant, steps: taken } = drawn.violation
    const shrunk = yield* shrink(
      steps.slice(0, taken),
      (steps) => Effect.map(playSteps(steps), ({ violation }) => violation?.invariant === invariant),
      options.shrinkRuns ?? 200
    )
    const last = yield* playSteps(shrunk)
    return yield* new SimulationFailed({
      ...{ seed, invariant, steps: taken, schedule: Schedule.toText(shrunk) },
      detail: last.violation?.detail ?? drawn.violation.detail,
      timeline: last.timeline.render(200)
    })
  }) as never

const millis = (input: Duration.Input): number => Duration.toMillis(Duration.fromInputUnsafe(input))
