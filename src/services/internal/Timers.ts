/**
 * Many timers on one sleeping fiber.
 *
 * Leases, delays, timeouts and debounce windows are set and cancelled far more
 * often than they fire; a fiber for each would cost more than the work they
 * guard. Here a new timer goes to the front of a list, and cancelling takes it out
 * again, whatever the number of timers. Those that are still there when the
 * sleeper wakes, which sleeps no longer than the earliest of all, are sorted into
 * a heap. Time is the Effect `Clock`'s, so `TestClock` moves it.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"

const idle = -1
const young = -2

/** Something to run at a time; extend it to spare the closure of {@link Timers.at}. */
export abstract class Timer {
  /** In milliseconds of {@link Timers.now}. */
  due = 0
  /** Set order: timers due together run in it. */
  order = 0
  /** Its index in the heap, or `young` in the list, or `idle`. */
  place = idle
  previous: Timer | undefined = undefined
  next: Timer | undefined = undefined

  /** Must not throw. */
  abstract run(): void

  get pending(): boolean {
    return this.place !== idle
  }
}

/** A function as a timer, to be started by {@link Timers.start}. */
export class Call extends Timer {
  override readonly run: () => void

  constructor(run: () => void) {
    super()
    this.run = run
  }
}

export interface Timers {
  /** Monotonic milliseconds with an arbitrary origin. */
  readonly now: () => number
  /** Calls `run` once `now()` has reached `due`, and not before `at` has returned. `run` must not throw. */
  readonly at: (due: number, run: () => void) => Timer
  /** Runs the timer once `now()` has reached `due`, instead of when it was to run before. */
  readonly start: (timer: Timer, due: number) => void
  readonly cancel: (timer: Timer) => void
}

/** Reads a clock in monotonic milliseconds. */
const monotonicMillis = (clock: Clock.Clock): number => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

// Longer sleeps are cut up: Node's timers overflow at 2^31 ms.
const longestSleep = 24 * 60 * 60 * 1000

/** Makes a set of timers that lives as long as the scope; closing it drops what is pending. */
export const make: Effect.Effect<Timers, never, Scope.Scope> = Effect.gen(function* () {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const context = yield* Effect.context<never>()
  const runFork = Effect.runForkWith(context)

  const heap: Array<Timer> = []
  let newest: Timer | undefined
  let order = 0
  let closed = false
  let firing = false
  /** When the sleeper wakes: not later than any pending timer is due. */
  let armedFor = Number.POSITIVE_INFINITY
  let sleeper: Fiber.Fiber<void> | undefined

  const now = () => monotonicMillis(clock)

  const arm = (due: number) => {
    sleeper?.interruptUnsafe()
    armedFor = due
    const millis = Math.min(Math.max(due - now(), 0), longestSleep)
    // Sleeps end on whole milliseconds at best: round up, so that the timer is due when it fires. Not within this
    // call, whatever the clock: whoever sets a timer has it in hand before it runs.
    const sleep = millis > 0 ? clock.sleep(Duration.millis(Math.ceil(millis))) : Effect.yieldNow
    sleeper = runFork(Effect.flatMap(sleep, () => Effect.sync(fire)))
  }

  const fire = () => {
    sleeper = undefined
    armedFor = Number.POSITIVE_INFINITY
    while (newest !== undefined) {
      const timer = newest
      unlink(timer)
      push(heap, timer)
    }
    const time = now()
    firing = true
    while (heap.length > 0 && heap[0]!.due <= time) {
      const timer = heap[0]!
      remove(heap, timer)
      timer.run()
    }
    firing = false
    if (heap.length > 0) arm(heap[0]!.due)
  }

  const unlink = (timer: Timer) => {
    if (timer.previous === undefined) newest = timer.next
    else timer.previous.next = timer.next
    if (timer.next !== undefined) timer.next.previous = timer.previous
    timer.previous = timer.next = undefined
    timer.place = idle
  }

  const cancel = (timer: Timer) => {
    if (timer.place === idle) return
    if (timer.place === young) unlink(timer)
    else remove(heap, timer)
  }

  const start = (timer: Timer, due: number) => {
    cancel(timer)
    if (closed) return
    timer.due = due
    timer.order = order++
    if (firing) return push(heap, timer)
    timer.place = young
    timer.next = newest
    if (newest !== undefined) newest.previous = timer
    newest = timer
    if (due < armedFor) arm(due)
  }

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      closed = true
      for (const timer of heap) timer.place = idle
      heap.length = 0
      while (newest !== undefined) unlink(newest)
      return sleeper === undefined ? Effect.void : Fiber.interrupt(sleeper)
    })
  )

  return {
    now,
    at(due, run) {
      const timer = new Call(run)
      start(timer, due)
      return timer
    },
    start,
    cancel
  }
})

const before = (a: Timer, b: Timer): boolean => a.due < b.due || (a.due === b.due && a.order < b.order)

const put = (heap: Array<Timer>, timer: Timer, index: number): void => {
  heap[index] = timer
  timer.place = index
}

const push = (heap: Array<Timer>, timer: Timer): void => {
  heap.push(timer)
  rise(heap, timer, heap.length - 1)
}

const remove = (heap: Array<Timer>, timer: Timer): void => {
  const index = timer.place
  const last = heap.pop()!
  if (last !== timer) {
    // The last one takes the place, and then goes where it belongs: down, or up.
    sink(heap, last, index)
    rise(heap, last, last.place)
  }
  timer.place = idle
}

const rise = (heap: Array<Timer>, timer: Timer, from: number): void => {
  let index = from
  while (index > 0) {
    const parent = (index - 1) >> 1
    if (before(heap[parent]!, timer)) break
    put(heap, heap[parent]!, index)
    index = parent
  }
  put(heap, timer, index)
}

const sink = (heap: Array<Timer>, timer: Timer, from: number): void => {
  let index = from
  while (true) {
    let child = 2 * index + 1
    if (child >= heap.length) break
    if (child + 1 < heap.length && before(heap[child + 1]!, heap[child]!)) child++
    if (before(timer, heap[child]!)) break
    put(heap, heap[child]!, index)
    index = child
  }
  put(heap, timer, index)
}
