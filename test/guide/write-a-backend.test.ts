/** The backend of the guide "Write a backend", on a private PostgreSQL. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as PostgresServer from "../servers/PostgresServer.ts"

// Lives as long as this process.
process.env.DATABASE_URL = await Effect.runPromise(
  Effect.flatMap(Scope.make(), (scope) => Scope.provide(PostgresServer.database, scope))
)
await import("../../examples/write-a-backend/PgLockStore.test.ts")
