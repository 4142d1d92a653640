/**
 * Many timers on one sleeping fiber.
 *
 * Leases, delays, timeouts and debounce windows are set and cancelled far more
 * often than they fire; a fiber for each would cost more than the work they
 * guard. Here setting one is a heap insert, cancelling one is a flag, and only
 * the earliest is slept for. Time is the Effect `Clock`'s, so `TestClock` moves it.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"

/** One pending call; `due` is in milliseconds of {@link Timers.now}. */
export interface Timer {
  readonly due: number
  /** Set order: timers due together run in it. */
  readonly order: number
  run: (() => void) | undefined
}

export interface Timers {
  /** Monotonic milliseconds with an arbitrary origin. */
  readonly now: () => number
  /** Calls `run` once `now()` has reached `due`. `run` must not throw. */
  readonly at: (due: number, run: () => void) => Timer
  readonly cancel: (timer: Timer) => void
}

/** Reads a clock in monotonic milliseconds. */
export const monotonicMillis = (clock: Clock.Clock): number => Number(clock.monotonicTimeNanosUnsafe()) / 1e6

// Longer sleeps are cut up: Node's timers overflow at 2^31 ms.
const longestSleep = 24 * 60 * 60 * 1000

/** Makes a set of timers that lives as long as the scope; closing it drops what is pending. */
export const make: Effect.Effect<Timers, never, Scope.Scope> = Effect.gen(function* () {
  const clock = yield* Clock.clockWith(Effect.succeed)
  const context = yield* Effect.context<never>()
  const runFork = Effect.runForkWith(context)

  let heap: Array<Timer> = []
  let cancelled = 0
  let order = 0
  let closed = false
  let armedFor = Number.POSITIVE_INFINITY
  let sleeper: Fiber.Fiber<void> | undefined

  const now = () => monotonicMillis(clock)

  const arm = () => {
    while (heap.length > 0 && heap[0]!.run === undefined) {
      pop(heap)
      cancelled--
    }
    const head = heap[0]
    if (head === undefined || closed || head.due >= armedFor) return
    sleeper?.interruptUnsafe()
    armedFor = head.due
    const millis = Math.min(Math.max(head.due - now(), 0), longestSleep)
    // Sleeps end on whole milliseconds at best: round up, so that the timer is due when it fires.
    sleeper = runFork(Effect.flatMap(clock.sleep(Duration.millis(Math.ceil(millis))), () => Effect.sync(fire)))
  }

  const fire = () => {
    sleeper = undefined
    armedFor = Number.POSITIVE_INFINITY
    const time = now()
    while (heap.length > 0 && heap[0]!.due <= time) {
      const timer = pop(heap)
      const run = timer.run
      if (run === undefined) {
        cancelled--
      } else {
        timer.run = undefined
        run()
      }
    }
    arm()
  }

  yield* Effect.addFinalizer(() =>
    Effect.suspend(() => {
      closed = true
      heap = []
      return sleeper === undefined ? Effect.void : Fiber.interrupt(sleeper)
    })
  )

  return {
    now,
    at(due, run) {
      const timer: Timer = { due, order: order++, run }
      if (closed) {
        timer.run = undefined
        return timer
      }
      push(heap, timer)
      if (due < armedFor) arm()
      return timer
    },
    cancel(timer) {
      if (timer.run === undefined) return
      timer.run = undefined
      cancelled++
      if (cancelled > 64 && cancelled * 2 > heap.length) {
        heap = heap.filter((timer) => timer.run !== undefined)
        heap.sort((a, b) => (before(a, b) ? -1 : 1)) // a sorted array is a heap
        cancelled = 0
      }
    }
  }
})

const before = (a: Timer, b: Timer): boolean => a.due < b.due || (a.due === b.due && a.order < b.order)

const push = (heap: Array<Timer>, timer: Timer): void => {
  let index = heap.length
  heap.push(timer)
  while (index > 0) {
    const parent = (index - 1) >> 1
    if (before(heap[parent]!, timer)) break
    heap[index] = heap[parent]!
    index = parent
  }
  heap[index] = timer
}

const pop = (heap: Array<Timer>): Timer => {
  const head = heap[0]!
  const last = heap.pop()!
  const size = heap.length
  if (size === 0) return head
  let index = 0
  while (true) {
    let child = 2 * index + 1
    if (child >= size) break
    if (child + 1 < size && before(heap[child + 1]!, heap[child]!)) child++
    if (before(last, heap[child]!)) break
    heap[index] = heap[child]!
    index = child
  }
  heap[index] = last
  return head
}
