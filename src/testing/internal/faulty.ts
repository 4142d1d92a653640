/** Ports that fail when told to: one mechanism for all of them. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { Unavailable } from "../../services/Reason.ts"

/** What is asked of a port. */
export interface Call {
  /** Of the primitive that asks. */
  readonly store: "cache" | "lock" | "queue" | "topic" | "sync" | "other"
  readonly operation: string
  /** The channel, the cache or the key that it is about. */
  readonly on: string
}

/** Calls that are to fail. */
export interface Rule {
  readonly store: Call["store"]
  /** `undefined` for every one. */
  readonly operation: string | undefined
  readonly on: string | undefined
  readonly when: "before" | "after"
  left: number
}

/** The first rule for a call, which it uses up by one. */
const take = (rules: Array<Rule>, { on, operation, store }: Call): Rule | undefined => {
  const rule = rules.find(
    (rule) =>
      rule.store === store &&
      (rule.operation === undefined || rule.operation === operation) &&
      (rule.on === undefined || rule.on === on)
  )
  if (rule !== undefined && --rule.left <= 0) rules.splice(rules.indexOf(rule), 1)
  return rule
}

type Operation = (...args: ReadonlyArray<any>) => Effect.Effect<any, any, any>

/**
 * A port whose functions fail by the rules. `call` tells what a function is asked, and what to make of its answer;
 * what is not a function passes.
 */
export const faulty = <Port extends object>(
  port: Port,
  rules: Array<Rule>,
  call: (operation: string, args: ReadonlyArray<any>) => Call,
  answer: (operation: string, args: ReadonlyArray<any>, value: any) => unknown = (_operation, _args, value) => value
): Port => {
  const wrap = (name: string, run: Operation): Operation => {
    return (...args) => {
      const asked = call(name, args)
      const rule = take(rules, asked)
      const refused = () =>
        new Unavailable({ backend: "test", detail: `${asked.operation} of "${asked.on}" is told to fail` })
      if (rule?.when === "before") return Exit.fail(refused())
      const answered = run(...args)
      // As it is, where nothing is to be changed: what a store answers in the call stays so.
      if (rule !== undefined) return Effect.flatMap(answered, () => Effect.fail(refused()))
      return name === "worker" ? Effect.map(answered, (value) => answer(name, args, value)) : answered
    }
  }
  return Object.fromEntries(
    Object.entries(port).map(([name, member]) => [name, typeof member === "function" ? wrap(name, member) : member])
  ) as Port
}
