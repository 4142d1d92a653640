/** One instance of a simulated cluster, over all its starts. */
import type * as Context from "effect/Context"
import type * as Scope from "effect/Scope"
import type { Operation, StoreName } from "../Observation.ts"
import type { Process } from "./Process.ts"

interface Failing {
  readonly operation: Operation | StoreName
  readonly when: "before" | "after"
  left: number
}

export class Member {
  readonly index: number
  starts = 0
  id = ""
  /** Whether its plugins have started. */
  ready = false
  /** Whether it is cut off from the broker. */
  cut = false
  process: Process
  scope: Scope.Closeable
  /** What effects that run here have in context. */
  context: Context.Context<never>
  failing: Array<Failing> = []

  constructor(index: number, process: Process, scope: Scope.Closeable, context: Context.Context<never>) {
    this.index = index
    this.process = process
    this.scope = scope
    this.context = context
  }

  get state(): "starting" | "running" | "frozen" | "stopped" | "crashed" {
    const { state } = this.process
    return this.ready || state !== "running" ? state : "starting"
  }

  get isUp(): boolean {
    return this.process.state === "running" || this.process.state === "frozen"
  }

  /** Whether an operation is to fail, and when; counts it. */
  refuses(operation: Operation): "before" | "after" | undefined {
    if (this.failing.length === 0) return undefined
    const found = this.failing.find((one) => operation === one.operation || operation.startsWith(`${one.operation}.`))
    if (found !== undefined && --found.left <= 0) this.failing.splice(this.failing.indexOf(found), 1)
    return found?.when
  }
}
