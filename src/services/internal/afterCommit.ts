/**
 * What is published inside an open transaction leaves when it has committed.
 *
 * The transaction is that of the `effect/sql` client in context, or else the innermost one that any client has open:
 * a service that has captured its client need not have it in context.
 *
 * - After the outermost commit, in the order of publishing; never after a rollback, of the transaction or of the
 *   savepoint it was published in, or after a COMMIT that failed.
 * - Sending begins with the commit and is not waited for: a broker that is away holds nobody up. Closing the scope
 *   waits, as long as sending may take.
 * - What fails then cannot fail the transaction: it is logged and counted.
 * - In a transaction that has ended, as a fiber that outlives it may do, nothing is sent: it fails with `InvalidInput`.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Reactivity from "effect/reactivity/Reactivity"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import * as Statement from "effect/sql/Statement"
import * as Metrics from "../Metrics.ts"
import { InvalidInput } from "../Reason.ts"

type TransactionKey = Context.Key<any, object>
type Defer = (effect: Effect.Effect<void>) => Effect.Effect<void>

/** An open transaction: whose, and how to wait for its commit. */
export interface Transaction {
  readonly key: TransactionKey
  /** Runs an effect after the outermost commit. `InvalidInput` when the transaction has ended. */
  readonly defer: (effect: Effect.Effect<void>) => Effect.Effect<void, InvalidInput>
}

/** The key of the innermost transaction of any client, kept by `effect/sql` in the context of what runs inside. */
const InnermostTransaction = Context.Reference<TransactionKey | undefined>("effect/sql/CurrentTransactionService", {
  defaultValue: () => undefined
})

/** By transaction key: `afterCommit` of a client that shares nothing with the one at work but its transactions. */
const defers = new WeakMap<TransactionKey, Defer>()

const deferOf = (key: TransactionKey): Effect.Effect<Defer> =>
  Effect.suspend(() => {
    const known = defers.get(key)
    if (known !== undefined) return Effect.succeed(known)
    const client = SqlClient.make({
      acquirer: Effect.die("a client that only waits for commits"),
      compiler: Statement.makeCompilerSqlite(),
      driver: "cohort",
      spanAttributes: [],
      transactionService: key as SqlClient.SqlClient["transactionService"]
    })
    return Effect.map(
      Effect.provideServiceEffect(client, Reactivity.Reactivity, Reactivity.make),
      ({ afterCommit }) => {
        defers.set(key, afterCommit)
        return afterCommit
      }
    )
  })

const ended = new InvalidInput({
  field: "transaction",
  detail: "has ended: publish before it does, or without its context"
})

/** The transaction that is open in a context: that of `preferred`, of the client in context, or the innermost. */
export const openTransaction = (
  context: Context.Context<never>,
  preferred?: TransactionKey
): Transaction | undefined => {
  const client = Context.getOrUndefined(context, SqlClient.SqlClient)?.transactionService
  const isOpen = (key: TransactionKey | undefined): key is TransactionKey =>
    key !== undefined && Context.getOrUndefined(context, key) !== undefined
  const innermost = Context.get(context, InnermostTransaction)
  const key = [preferred, client, innermost].find(isOpen)
  return key === undefined
    ? undefined
    : {
        key,
        // The one defect it knows: the transaction has ended.
        defer: (effect) =>
          Effect.flatMap(deferOf(key), (defer) => Effect.catchDefect(defer(effect), () => Effect.fail(ended)))
      }
}

export interface AfterCommit<E> {
  /** Sends now, or after the commit of the open transaction; then it answers `later` at once. */
  readonly send: <A>(send: Effect.Effect<A, E>, later: A, annotations: Record<string, unknown>) => Effect.Effect<A, E>
}

export const make = <E>(wrapError: (reason: InvalidInput) => E): Effect.Effect<AfterCommit<E>, never, Scope.Scope> =>
  Effect.map(Effect.scope, (scope) => ({
    send: (send, later, annotations) =>
      Effect.withFiber((fiber) => {
        const transaction = openTransaction(fiber.context)
        if (transaction === undefined) return send
        const logged = Effect.catchCause(send, (cause) =>
          Effect.andThen(
            Effect.annotateLogs(Effect.logWarning("Committed, but what it published was not sent", cause), annotations),
            Metric.update(Metrics.afterCommitFailures, 1)
          )
        )
        // Begins inside the call, so in order; closing the scope waits for what cannot be interrupted.
        const begin = Effect.forkIn(logged, scope, { startImmediately: true, uninterruptible: true })
        return Effect.mapError(Effect.as(transaction.defer(Effect.asVoid(begin)), later), wrapError)
      })
  }))
