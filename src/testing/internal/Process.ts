/**
 * What an operating system does to a process, for the fibers of one simulated instance.
 *
 * Its fibers run on a scheduler of their own. While the process stands still every fiber yields before its next
 * step, and the scheduler keeps what yields, and what comes from outside, until the process goes on; after a crash
 * it drops it, so that no fiber takes another step and no finalizer runs.
 *
 * Its clock reads the cluster's, plus a skew of the wall time. A sleep that ends while the process is frozen is
 * noticed when it goes on, as a timer of a stopped process is.
 */
import * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { Scheduler, SchedulerDispatcher } from "effect/Scheduler"

type ProcessState = "running" | "frozen" | "stopped" | "crashed"

export class Process {
  /** Milliseconds by which its wall clock is ahead. */
  skew = 0
  readonly scheduler: Scheduler
  readonly clock: Clock.Clock
  private current: ProcessState = "running"
  /** Set from `thaw` until what was kept has run. */
  private thawing = false
  private kept: Array<() => void> = []
  private readonly dispatcher: SchedulerDispatcher
  private readonly onEnd = new Set<() => void>()
  /** What was run here from outside, and has not ended. */
  private readonly running = new Set<Fiber.Fiber<unknown, unknown>>()
  private stopping = false

  constructor(parent: Scheduler, clock: Clock.Clock, runFork: (effect: Effect.Effect<void>) => Fiber.Fiber<void>) {
    this.dispatcher = parent.makeDispatcher()
    this.scheduler = {
      executionMode: parent.executionMode,
      shouldYield: (fiber) => this.stands || parent.shouldYield(fiber),
      makeDispatcher: () => {
        const dispatcher = parent.makeDispatcher()
        return {
          scheduleTask: (task, priority) => dispatcher.scheduleTask(() => this.enter(task), priority),
          flush: () => dispatcher.flush()
        }
      }
    }
    const wallMillis = () => clock.currentTimeMillisUnsafe() + this.skew
    const wallNanos = () => clock.currentTimeNanosUnsafe() + BigInt(Math.round(this.skew * 1e6))
    this.clock = {
      // What a test clock has beyond a clock: `adjust` works on an instance, too.
      ...clock,
      currentTimeMillisUnsafe: wallMillis,
      currentTimeMillis: Effect.sync(wallMillis),
      currentTimeNanosUnsafe: wallNanos,
      currentTimeNanos: Effect.sync(wallNanos),
      monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
      monotonicTimeNanos: clock.monotonicTimeNanos,
      sleep: (duration) =>
        Duration.toMillis(duration) > 0
          ? Effect.callback<void>((resume) => {
              // The cluster's clock wakes a fiber of the cluster, which never stands still.
              const fiber = runFork(clock.sleep(duration))
              fiber.addObserver(() => this.receive(() => resume(Effect.void)))
              return Effect.sync(() => fiber.interruptUnsafe())
            })
          : Effect.yieldNow
    }
  }

  get state(): ProcessState {
    return this.current
  }

  /** Whether no fiber takes a step. */
  private get stands(): boolean {
    return this.current !== "running" || this.thawing
  }

  private enter(task: () => void): void {
    if (!this.stands) task()
    else if (this.current === "running" || this.current === "frozen") this.kept.push(task)
  }

  /** Runs what comes from outside: now, after what came before it, or never. */
  receive(task: () => void): void {
    if (this.kept.length === 0) this.enter(task)
    else this.kept.push(task)
  }

  freeze(): void {
    if (this.current === "running") this.current = "frozen"
  }

  thaw(): void {
    if (this.current !== "frozen") return
    this.current = "running"
    this.thawing = true
    this.dispatcher.scheduleTask(() => {
      this.thawing = false
      for (let i = 0; i < this.kept.length; i++) {
        if (this.stands) {
          this.kept = this.kept.slice(i)
          return
        }
        this.kept[i]!()
      }
      this.kept = []
    }, 0)
  }

  /** Ends it: no fiber takes another step, no finalizer runs. */
  end(state: "stopped" | "crashed"): void {
    if (this.current === "stopped" || this.current === "crashed") return
    this.current = state
    this.kept = []
    for (const listener of [...this.onEnd]) listener()
    this.onEnd.clear()
  }

  /** Interrupts what was run from outside, as a server does with its requests before all else stops. */
  readonly interruptRunning: Effect.Effect<void> = Effect.suspend(() => {
    this.stopping = true
    const current = Fiber.getCurrent()
    return Fiber.interruptAll([...this.running].filter((fiber) => fiber !== current))
  })

  /** Runs an effect in a fiber of the process; should the process end first, `ended` is the answer. */
  run<A, E, R>(
    effect: Effect.Effect<A, E, R>,
    context: Context.Context<R>,
    ended: () => Effect.Effect<never>
  ): Effect.Effect<A, E> {
    return Effect.callback<A, E>((resume) => {
      if (this.current === "stopped" || this.current === "crashed") return resume(Effect.suspend(ended))
      const onEnd = () => resume(Effect.suspend(ended))
      this.onEnd.add(onEnd)
      const fiber = Effect.runForkWith(context)(effect)
      this.running.add(fiber)
      fiber.addObserver((exit) => {
        this.onEnd.delete(onEnd)
        this.running.delete(fiber)
        const isStopped = this.stopping && Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause)
        resume(isStopped ? Effect.suspend(ended) : exit)
      })
      return Effect.callback<void>((stopped) => {
        fiber.addObserver(() => stopped(Effect.void))
        fiber.interruptUnsafe()
        // A process that stands still does not answer; whoever gives up need not wait for it.
        if (this.stands) stopped(Effect.void)
        else this.onEnd.add(() => stopped(Effect.void))
      })
    })
  }
}
