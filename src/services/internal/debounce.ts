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
import type { Timers } from "./Timers.ts"

interface Pending<A> {
  item: A
  due: number
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

    const wait = (key: unknown, entry: Pending<A>): void => {
      timers.at(entry.due, () => {
        if (closed) return
        if (timers.now() < entry.due) return wait(key, entry)
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
        entry.due = Math.min(now + options.duration, entry.latest)
        return
      }
      const latest = now + options.maxWait
      const entry: Pending<A> = { item, due: Math.min(now + options.duration, latest), latest }
      MutableHashMap.set(pending, key, entry)
      wait(key, entry)
    }
  })
