/**
 * Token policy and revocation.
 *
 * @since 0.1.0
 */
export * as Auth from "./Auth.ts"
export * as AuthStore from "./AuthStore.ts"
export * as AuthStoreSql from "./AuthStoreSql.ts"
