/**
 * Time and turns of a simulation: a clock that stands still until it is moved, and a scheduler with one queue.
 *
 * Everything runs inside `settle` and `advance`, one task after the other, in an order that depends on nothing but what
 * was asked for: not on the event loop, not on the machine.
 */
import type * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scheduler from "effect/Scheduler"

interface Sleeper {
  readonly due: number
  readonly order: number
  /** Cleared when it is interrupted. */
  wake: (() => void) | undefined
}

/** Tasks without an end: fibers that keep each other busy while no time passes. */
const tooManyTasks = 1_000_000

/** Of a fiber before others get their turn, as by default. */
const maxOps = 2_048

export class VirtualTime {
  /** Milliseconds since the simulation began, monotonic and wall. */
  now = 0
  private order = 0
  private readonly sleepers: Array<Sleeper> = []
  /** By priority; the lowest first. */
  private readonly queues = new Map<number, Array<() => void>>()

  readonly scheduler: Scheduler.Scheduler = {
    executionMode: "async",
    shouldYield: (fiber) => fiber.currentOpCount >= maxOps,
    makeDispatcher: () => this.dispatcher
  }

  private readonly dispatcher: Scheduler.SchedulerDispatcher = {
    scheduleTask: (task, priority) => {
      const queue = this.queues.get(priority)
      if (queue === undefined) this.queues.set(priority, [task])
      else queue.push(task)
    },
    flush: () => this.settle()
  }

  readonly clock: Clock.Clock = {
    currentTimeMillisUnsafe: () => this.now,
    currentTimeMillis: Effect.sync(() => this.now),
    currentTimeNanosUnsafe: () => this.nanos(),
    currentTimeNanos: Effect.sync(() => this.nanos()),
    monotonicTimeNanosUnsafe: () => this.nanos(),
    monotonicTimeNanos: Effect.sync(() => this.nanos()),
    sleep: (duration) =>
      Duration.toMillis(duration) > 0
        ? Effect.callback<void>((resume) => {
            const sleeper = this.at(this.now + Duration.toMillis(duration), () => resume(Effect.void))
            return Effect.sync(() => {
              sleeper.wake = undefined
            })
          })
        : Effect.yieldNow
  }

  private nanos(): bigint {
    return BigInt(Math.round(this.now * 1e6))
  }

  /** Whether something is there to run. */
  get busy(): boolean {
    for (const queue of this.queues.values()) if (queue.length > 0) return true
    return false
  }

  /** When the next sleep ends; `Infinity` when nothing sleeps. */
  get next(): number {
    while (this.sleepers.length > 0 && this.sleepers[0]!.wake === undefined) this.pop()
    return this.sleepers[0]?.due ?? Number.POSITIVE_INFINITY
  }

  /** Runs what is there to run, and what that causes, until only time is waited for. */
  settle(): void {
    for (let count = 0; ; ) {
      let lowest = Number.POSITIVE_INFINITY
      for (const [priority, queue] of this.queues) if (queue.length > 0 && priority < lowest) lowest = priority
      const queue = this.queues.get(lowest)
      if (queue === undefined) return
      this.queues.delete(lowest)
      for (const task of queue) {
        if (++count > tooManyTasks) throw new Error("what runs here never waits: time cannot pass")
        task()
      }
    }
  }

  /** Moves to a time no later than `next`, and wakes who sleeps until then, one after the other. */
  advance(to: number): void {
    this.now = Math.max(this.now, to)
    while (this.next <= this.now) {
      this.pop().wake!()
      this.settle()
    }
  }

  at(due: number, wake: () => void): { wake: (() => void) | undefined } {
    const sleeper: Sleeper = { due, order: this.order++, wake }
    const heap = this.sleepers
    let index = heap.push(sleeper) - 1
    while (index > 0) {
      const parent = (index - 1) >> 1
      if (before(heap[parent]!, sleeper)) break
      heap[index] = heap[parent]!
      index = parent
    }
    heap[index] = sleeper
    return sleeper
  }

  private pop(): Sleeper {
    const heap = this.sleepers
    const first = heap[0]!
    const last = heap.pop()!
    if (heap.length === 0) return first
    let index = 0
    while (true) {
      let child = 2 * index + 1
      if (child >= heap.length) break
      if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++
      if (before(last, heap[child]!)) break
      heap[index] = heap[child]!
      index = child
    }
    heap[index] = last
    return first
  }
}

const before = (a: Sleeper, b: Sleeper): boolean => a.due < b.due || (a.due === b.due && a.order < b.order)
