/**
 * Trailing debounce, keyed by content.
 *
 * Within the window, messages with equal keys collapse to one call with the last
 * of them; messages with different keys all come through. Each repeat starts the
 * window of its key again, up to `maxWait` after the first.
 */
import * as Effect from "effect/Effect"
import * as MutableHashMap from "effect/MutableHashMap"
import type * as Scope from "effect/Scope"
import type { Timer, Timers } from "./Timers.ts"

interface Pending<A> {
  item: A
  timer: Timer | undefined
  readonly latest: number
}

export interface DebounceOptions {
  /** Milliseconds, positive. */
  readonly duration: number
  /** Milliseconds, positive; `Infinity` for no limit. */
  readonly maxWait: number
}

/** Makes the function that offers messages; closing the scope drops what is pending. */
export const make = <A>(
  timers: Timers,
  options: DebounceOptions,
  emit: (item: A) => void
): Effect.Effect<(key: unknown, item: A) => void, never, Scope.Scope> =>
  Effect.gen(function* () {
    // Keys are compared by structure, whatever the order of their fields.
    const pending = MutableHashMap.empty<unknown, Pending<A>>()
    let closed = false

    // Every repeat sets the timer anew, so that calls keep the order of their last messages.
    const wait = (key: unknown, entry: Pending<A>, now: number): void => {
      entry.timer = timers.at(Math.min(now + options.duration, entry.latest), () => {
        if (closed) return
        MutableHashMap.remove(pending, key)
        emit(entry.item)
      })
    }

    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        closed = true
        MutableHashMap.clear(pending)
      })
    )

    return (key, item) => {
      if (closed) return
      const now = timers.now()
      const known = MutableHashMap.get(pending, key)
      if (known._tag === "Some") {
        const entry = known.value
        entry.item = item
        timers.cancel(entry.timer!)
        return wait(key, entry, now)
      }
      const entry: Pending<A> = { item, timer: undefined, latest: now + options.maxWait }
      MutableHashMap.set(pending, key, entry)
      wait(key, entry, now)
    }
  })
