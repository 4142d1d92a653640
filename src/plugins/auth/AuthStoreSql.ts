/**
 * What `auth` keeps, in a SQL database (PostgreSQL): the policy of each app in `cohort_auth_policies`, the revoked
 * tokens in `cohort_auth_revocations`.
 *
 * @since 0.2.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import { SqlClient } from "effect/sql/SqlClient"
import { Instance } from "../../services/Instance.ts"
import type { StoreError } from "../StoreError.ts"
import * as Sql from "../sql.ts"
import { AuthStore, defaultPolicy, TokenPolicy } from "./AuthStore.ts"

const migrations = {
  "1_auth": SqlClient.use((sql) =>
    Effect.all(
      [
        sql`CREATE TABLE cohort_auth_policies (app TEXT PRIMARY KEY, policy TEXT NOT NULL)`,
        sql`CREATE TABLE cohort_auth_revocations (
          app TEXT NOT NULL,
          token TEXT NOT NULL,
          "expiresAt" TIMESTAMPTZ NOT NULL,
          PRIMARY KEY (app, token)
        )`,
        sql`CREATE INDEX cohort_auth_revocations_expired ON cohort_auth_revocations (app, "expiresAt")`
      ],
      { discard: true }
    )
  )
}

const Policy = Schema.fromJsonString(TokenPolicy)
const decode = Schema.decodeUnknownEffect(Policy)
const encode = Schema.encodeEffect(Policy)

/**
 * In the database of the `SqlClient`, for all instances of the app. Creates its tables.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<AuthStore, StoreError, SqlClient | Instance> = Layer.effect(
  AuthStore,
  Effect.gen(function* () {
    const sql = yield* SqlClient
    const app = Sql.encodeText((yield* Instance).app)
    const store = Sql.failing("auth")
    yield* Sql.migrate("auth", migrations)

    return AuthStore.of({
      policy: store(
        Effect.flatMap(
          sql<{ policy: string }>`SELECT policy FROM cohort_auth_policies WHERE app = ${app}`,
          ([found]) => (found === undefined ? Effect.succeed(defaultPolicy) : decode(found.policy))
        )
      ),
      setPolicy: (next) =>
        store(
          Effect.flatMap(
            encode(next),
            (policy) => sql`INSERT INTO cohort_auth_policies ${sql.insert({ app, policy })}
              ON CONFLICT (app) DO UPDATE SET policy = excluded.policy`
          )
        ),
      revoke: (tokenId, expiresAt) => {
        const row = { app, token: Sql.encodeText(tokenId), expiresAt: new Date(expiresAt.epochMilliseconds) }
        return store(
          sql`INSERT INTO cohort_auth_revocations ${sql.insert(row)}
            ON CONFLICT (app, token) DO UPDATE SET "expiresAt" = excluded."expiresAt"`
        )
      },
      isRevoked: (tokenId) =>
        store(
          Effect.map(
            sql`SELECT 1 FROM cohort_auth_revocations WHERE app = ${app} AND token = ${Sql.encodeText(tokenId)}`,
            (found) => found.length > 0
          )
        ),
      purge: (now) =>
        store(
          Effect.map(
            sql`DELETE FROM cohort_auth_revocations
              WHERE app = ${app} AND "expiresAt" <= ${new Date(now.epochMilliseconds)} RETURNING 1`,
            (purged) => purged.length
          )
        )
    })
  })
)
