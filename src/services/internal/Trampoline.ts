/**
 * Runs tasks one after the other, never inside each other.
 *
 * A task runs at once when none is running; what it causes runs after it. Tasks
 * that keep causing tasks leave the rest of the process its turn.
 */
import * as Effect from "effect/Effect"

/** Tasks in a row before timers and sockets get their turn. */
const tasksPerTurn = 1_024

const done = () => {}

export const make: Effect.Effect<(task: () => void) => void> = Effect.map(Effect.context<never>(), (context) => {
  const runFork = Effect.runForkWith(context)
  const tasks: Array<() => void> = []
  let draining = false

  const drain = () => {
    for (let i = 0; i < tasks.length; i++) {
      if (i === tasksPerTurn) {
        tasks.splice(0, i)
        runFork(Effect.andThen(Effect.yieldNow, Effect.sync(drain)))
        return
      }
      const task = tasks[i]!
      // What has run is let go at once: the collector would carry all that a task holds through a whole turn.
      tasks[i] = done
      try {
        task()
      } catch (defect) {
        runFork(Effect.logError("A delivery died", defect))
      }
    }
    tasks.length = 0
    draining = false
  }

  return (task) => {
    tasks.push(task)
    if (draining) return
    draining = true
    drain()
  }
})
