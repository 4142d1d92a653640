/** One run of a schedule. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Random from "effect/Random"
import * as References from "effect/References"
import * as Schedules from "effect/Schedule"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import type * as Plugin from "../../services/Plugin.ts"
import type * as Backend from "../Backend.ts"
import type { Invariant, Watch } from "../Invariant.ts"
import * as TestCluster from "../TestCluster.ts"
import { Prng } from "./Prng.ts"
import { actText, type Step } from "./Schedule.ts"
import { Timeline } from "./Timeline.ts"
import { VirtualTime } from "./VirtualTime.ts"

export interface Setup {
  readonly seed: number
  readonly instances: number
  readonly steps: ReadonlyArray<Step>
  readonly context: Context.Context<never>
  readonly plugins: ReadonlyArray<Plugin.Any>
  readonly services: Layer.Layer<any, any, any> | undefined
  readonly shared: Layer.Layer<any, any> | undefined
  readonly backend: Effect.Effect<Backend.Backend, never, Scope.Scope> | undefined
  readonly instance: TestCluster.Options["instance"]
  readonly operations: ReadonlyMap<string, Effect.Effect<any, any, any>>
  readonly invariants: ReadonlyArray<Invariant<any>>
  /** Milliseconds. */
  readonly within: number
}

interface Violation {
  readonly invariant: string
  readonly detail: string
  /** Taken until then. */
  readonly steps: number
}

export interface Outcome {
  readonly violation: Violation | undefined
  readonly timeline: Timeline
  readonly now: number
}

/** How long a cluster may take to start, and to stop, in virtual milliseconds. */
const patience = 15 * 60_000

const restartBackoff = Schedules.spaced("1 second")

export const play = (setup: Setup): Effect.Effect<Outcome> =>
  Effect.gen(function* () {
    const { instances, operations, seed, steps } = setup
    const time = new VirtualTime()
    const timeline = new Timeline(instances)
    const logger = Logger.make(({ fiber, logLevel, message }) => {
      if (logLevel !== "Warn" && logLevel !== "Error" && logLevel !== "Fatal") return
      const [first] = Array.isArray(message) ? message : [message]
      if (typeof first === "string") timeline.add(time.now, instanceOf(fiber), `logs ${first}`)
    })
    const dice = new Prng(seed)
    const context = setup.context.pipe(
      Context.add(Clock.Clock, time.clock),
      Context.add(Scheduler.Scheduler, time.scheduler),
      Context.add(Random.Random, dice),
      Context.add(Logger.CurrentLoggers, new Set([logger]))
    )
    const numbers = Array.from({ length: instances }, (_, i) => i)
    let taken = 0
    let violation: Violation | undefined
    const violate = (invariant: string, detail: string) => {
      violation ??= { invariant, detail, steps: taken }
    }
    let runFork = Effect.runForkWith(context)

    /** Runs what there is to run, and lets promises have their turn. */
    const settle: Effect.Effect<void> = Effect.suspend(() => {
      time.settle()
      return Effect.flatMap(Effect.yieldNow, () => (time.busy ? settle : Effect.void))
    })

    let watches: ReadonlyArray<{ readonly name: string; readonly watch: Watch }> = []
    const check = () => {
      for (const { name, watch } of watches) {
        const wrong = watch.check?.()
        if (wrong !== undefined) violate(name, wrong)
        if (watch.always === undefined) continue
        const fiber = runFork(watch.always)
        time.settle()
        const exit = fiber.pollUnsafe()
        if (exit === undefined) fiber.interruptUnsafe()
        else if (Exit.isFailure(exit)) violate(name, failureText(exit.cause))
      }
    }

    // --- time ---

    /** What ends later: faults. */
    const ends: Array<{ readonly at: number; readonly end: () => void }> = []
    const endAt = (at: number, end: () => void) => {
      const place = ends.findIndex((other) => other.at > at)
      ends.splice(place < 0 ? ends.length : place, 0, { at, end })
    }
    const passUntil = (target: number) =>
      Effect.gen(function* () {
        while (violation === undefined) {
          const at = Math.min(time.next, ends[0]?.at ?? Number.POSITIVE_INFINITY)
          if (at > target) break
          time.advance(at)
          while (ends.length > 0 && ends[0]!.at <= time.now) ends.shift()!.end()
          yield* settle
          check()
        }
        if (violation === undefined) time.advance(target)
      })

    /** Runs what may take virtual time; `undefined` when it takes too long. */
    const complete = <A, E>(effect: Effect.Effect<A, E>, most = patience): Effect.Effect<Exit.Exit<A, E> | undefined> =>
      Effect.gen(function* () {
        const fiber = runFork(effect)
        const end = time.now + most
        yield* settle
        while (fiber.pollUnsafe() === undefined && violation === undefined) {
          const at = Math.min(time.next, ends[0]?.at ?? Number.POSITIVE_INFINITY)
          if (at > end) break
          yield* passUntil(at)
        }
        const exit = fiber.pollUnsafe()
        if (exit === undefined) fiber.interruptUnsafe()
        return exit
      })

    // --- the cluster ---

    const scope = yield* Scope.make()
    const built = yield* complete(
      Effect.gen(function* () {
        const shared = yield* Layer.buildWithMemoMap(
          (setup.shared ?? Layer.empty) as Layer.Layer<never>,
          Layer.makeMemoMapUnsafe(),
          scope
        )
        const { backend, instance, services } = setup
        const made = TestCluster.make(instances, setup.plugins, { seed, services, backend, instance }) as Effect.Effect<
          TestCluster.TestCluster,
          unknown,
          Scope.Scope
        >
        return [shared, yield* Effect.provideContext(Scope.provide(made, scope), shared)] as const
      }) as Effect.Effect<readonly [Context.Context<never>, TestCluster.TestCluster], unknown>
    )
    if (built === undefined || Exit.isFailure(built)) {
      violate("the cluster starts", built === undefined ? "it does not come to an end" : failureText(built.cause))
      return { violation, timeline, now: time.now }
    }
    const [shared, running] = built.value
    runFork = Effect.runForkWith(Context.merge(context, shared))

    // --- watching ---

    watches = setup.invariants.map((invariant) => ({
      name: invariant.name,
      watch: invariant.watch(running, () => time.now) as Watch
    }))
    const observers = watches.filter(({ watch }) => watch.observe !== undefined)
    running.observe((observation) => {
      timeline.note(observation)
      for (const { name, watch } of observers) {
        const wrong = watch.observe!(observation)
        if (wrong !== undefined) violate(name, wrong)
      }
    })
    // --- acting ---

    const fork = <A, E>(effect: Effect.Effect<A, E>, onExit?: (exit: Exit.Exit<A, E>) => void) => {
      const fiber = runFork(effect)
      if (onExit !== undefined) fiber.addObserver(onExit)
    }
    const restart = (instance: number) => {
      fork(
        Effect.retry(
          Effect.sandbox(Effect.suspend(() => (isDown(instance) ? running.restart(instance) : Effect.void))),
          restartBackoff
        ),
        (exit) => timeline.add(time.now, instance, Exit.isSuccess(exit) ? "is up again" : "does not start")
      )
    }
    const isDown = (instance: number) => ["stopped", "crashed"].includes(running.state(instance))
    let pending = 0
    let network = 0
    let partition = 0

    const operate = (instance: number, name: string, seed: number) => {
      const operation = operations.get(name)
      if (operation === undefined) return violate("the schedule", `there is no operation "${name}"`)
      const dice = new Prng(seed)
      pending++
      timeline.add(time.now, instance, `runs ${name} #${seed}`)
      const effect = Effect.provideService(operation, Random.Random, dice) as Effect.Effect<unknown, unknown>
      fork(running.on(instance, effect), (exit) => {
        pending--
        if (Exit.isSuccess(exit)) return timeline.add(time.now, instance, `ends ${name} #${seed}`)
        const isOver = exit.cause.reasons.some(
          (reason) => Cause.isDieReason(reason) && reason.defect instanceof TestCluster.InstanceDown
        )
        timeline.add(time.now, instance, `fails ${name} #${seed}: ${isOver ? "it is down" : failureText(exit.cause)}`)
        if (!isOver && Cause.hasDies(exit.cause)) violate("no operation dies", `${name}: ${failureText(exit.cause)}`)
      })
    }

    const act = (step: Step) => {
      if (step.act === "run") return operate(step.instance, step.name, step.seed)
      const until = time.now + ("lasts" in step ? step.lasts : 0)
      const isApt = "instance" in step ? running.state(step.instance) === "running" : true
      if (!isApt) return
      const text = actText(step)
      if ("instance" in step) timeline.add(time.now, step.instance, text.replace(/^\d+ /, ""))
      else timeline.add(time.now, undefined, text)
      switch (step.act) {
        case "crash":
          fork(running.crash(step.instance))
          return endAt(until, () => restart(step.instance))
        case "stop":
          return fork(running.stop(step.instance), () => endAt(time.now + step.lasts, () => restart(step.instance)))
        case "freeze": {
          const id = running.id(step.instance)
          fork(running.freeze(step.instance))
          return endAt(until, () => {
            if (running.id(step.instance) !== id || running.state(step.instance) !== "frozen") return
            timeline.add(time.now, step.instance, "thaws")
            fork(running.thaw(step.instance))
          })
        }
        case "cut": {
          const number = ++partition
          fork(running.partition(step.instances, ["broker"]))
          return endAt(until, () => {
            if (number !== partition) return
            timeline.add(time.now, undefined, "all are with the broker")
            fork(running.heal)
          })
        }
        case "skew":
          fork(running.skew(step.instance, step.by))
          return endAt(until, () => fork(running.skew(step.instance, 0)))
        case "refuse":
          return fork(running.fail(step.instance, step.operation, step))
        case "network": {
          const number = ++network
          const { delay, duplication, jitter, loss, reordering } = step
          const chances = { loss: loss / 100, duplication: duplication / 100, reordering: reordering / 100 }
          fork(running.network({ delay, jitter, ...chances }))
          return endAt(until, () => {
            if (number === network) fork(running.network(undefined))
          })
        }
      }
    }

    // --- the run ---

    for (const step of steps) {
      if (violation !== undefined) break
      yield* passUntil(time.now + step.after)
      if (violation !== undefined) break
      taken++
      act(step)
      yield* settle
      check()
    }

    if (violation === undefined) {
      // Every fault ends, in the order they were to.
      for (const { end } of ends.splice(0)) end()
      fork(Effect.andThen(running.heal, running.recover))
      timeline.add(time.now, undefined, "every fault has ended")
      yield* settle
      const began = time.now
      const due = watches.filter(({ watch }) => watch.eventually !== undefined)
      const wrong = new Map<string, string>()
      while (violation === undefined) {
        for (const { name, watch } of due) {
          const within = watch.within ?? setup.within
          const exit = yield* complete(watch.eventually!, within)
          if (exit === undefined) wrong.set(name, "it does not come to an end")
          else if (Exit.isFailure(exit)) wrong.set(name, failureText(exit.cause))
          else wrong.delete(name)
          if (wrong.has(name) && time.now - began > within) violate(name, wrong.get(name)!)
        }
        const isUp = numbers.every((i) => running.state(i) === "running")
        if (wrong.size === 0 && pending === 0 && isUp) break
        if (time.now - began > setup.within) {
          if (pending > 0) violate("every operation ends", `${pending} do not`)
          else if (!isUp)
            violate("every instance runs again", numbers.map((i) => `${i}: ${running.state(i)}`).join(", "))
        }
        yield* passUntil(time.now + 1_000)
      }
    }

    const closed = violation === undefined ? yield* complete(Scope.close(scope, Exit.void)) : Exit.void
    if (violation === undefined && (closed === undefined || numbers.some((i) => running.state(i) !== "stopped"))) {
      violate("every instance stops", "it does not come to an end")
    }
    if (violation !== undefined) timeline.add(time.now, undefined, `${violation.invariant}: ${violation.detail}`)
    return { violation, timeline, now: time.now }
  })

/** Which instance a fiber says it is of. */
const instanceOf = (fiber: Fiber.Fiber<unknown, unknown>): number | undefined => {
  const { instance } = fiber.getRef(References.CurrentLogAnnotations)
  return instance === undefined ? undefined : Number.parseInt(String(instance), 10)
}

/** An error in a line that is the same on every engine: its tag, and its reason's. */
const failureText = (cause: Cause.Cause<unknown>): string => {
  if (Cause.hasInterruptsOnly(cause)) return "interrupted"
  const error = Cause.squash(cause)
  if (!(error instanceof Error)) return JSON.stringify(error) ?? String(error)
  const reason = (error as { readonly reason?: unknown }).reason
  return reason instanceof Error
    ? `${error.name} (${reason.name}: ${firstLine(reason)})`
    : `${error.name}: ${firstLine(error)}`
}

const firstLine = (error: Error): string => error.message.split("\n", 1)[0]!
