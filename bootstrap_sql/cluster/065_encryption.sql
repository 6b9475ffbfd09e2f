-- elsapg: database=elsa_workflows,elsa_runtime

-- Encryption of JSON values, with keys that are given per transaction and never stored here:
--     SELECT elsa_crypto.use_keys($1);                    -- always a bound parameter
--     SELECT elsa_crypto.encrypt('"123-45-6789"', 'ssn');
-- What it is, byte by byte, and why: docs/encryption.md and docs/decisions/0012-encryption.md.
CREATE SCHEMA IF NOT EXISTS elsa_crypto;
REVOKE ALL ON SCHEMA elsa_crypto FROM PUBLIC;
-- elsa_maintenance: rotation, in the next file.
GRANT USAGE ON SCHEMA elsa_crypto TO elsa_user, elsa_worker, elsa_maintenance;

-- The setting holds the moment the transaction began, a space, and the ring. So what another
-- transaction, a session or ALTER ROLE … SET left there is not taken for this transaction's keys.
CREATE OR REPLACE FUNCTION elsa_crypto.stamp()
RETURNS text
LANGUAGE sql
STABLE
PARALLEL SAFE
RETURN pg_catalog.date_part('epoch', pg_catalog.transaction_timestamp())::text; -- noqa: PRS

-- Messages never repeat what was given: it may be a key. Hence no cast that could fail, either.
CREATE OR REPLACE FUNCTION elsa_crypto.use_keys(p_ring text)
RETURNS void
LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_ring jsonb;
    v_problem text;
    v_key record;
BEGIN
    IF p_ring IS NULL OR NOT pg_input_is_valid(p_ring, 'jsonb') THEN
        v_problem := 'it is not JSON';
    ELSE
        v_ring := p_ring::jsonb;
        IF jsonb_typeof(v_ring) <> 'object'
            OR NOT v_ring ?& ARRAY['current', 'keys']
            OR v_ring - ARRAY['current', 'keys'] <> '{}'
            OR jsonb_typeof(v_ring -> 'current') <> 'string'
            OR jsonb_typeof(v_ring -> 'keys') <> 'object'
        THEN
            v_problem := 'it must have "current" and "keys", and nothing else';
        ELSIF NOT v_ring -> 'keys' ? (v_ring ->> 'current') THEN
            v_problem := 'its current key is not among its keys';
        ELSE
            FOR v_key IN SELECT e.key AS id, e.value FROM jsonb_each(v_ring -> 'keys') AS e LOOP
                IF v_key.id !~ '^[a-z0-9][a-z0-9._-]{0,31}$' THEN
                    v_problem := 'a key''s id is not 1 to 32 of a-z, 0-9, ".", "_" and "-"';
                ELSIF jsonb_typeof(v_key.value) <> 'string'
                    OR v_key.value #>> '{}' !~ '^[A-Za-z0-9+/]{43}=$'
                THEN
                    v_problem := 'a key is not 32 bytes in base64';
                ELSIF position(v_key.value #>> '{}' IN current_query()) > 0 THEN
                    -- No error: an error would write the statement, and the key, to the log.
                    RAISE WARNING 'these keys stand in the statement''s text, where others can read them; they were not taken'
                    USING HINT = 'Give the ring as a bound parameter ($1; \bind in psql), and replace these keys.';
                    RETURN;
                END IF;
            END LOOP;
        END IF;
    END IF;
    IF v_problem IS NOT NULL THEN
        RAISE EXCEPTION 'this is no ring of keys: %', v_problem
        USING
            ERRCODE = 'invalid_parameter_value',
            HINT = 'Give what "elsapg keys show" prints: {"current": "k1", "keys": {"k1": "<32 bytes in base64>"}}.';
    END IF;
    PERFORM set_config('app.encryption_keys', elsa_crypto.stamp() || ' ' || v_ring::text, true);
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.ring()
RETURNS jsonb
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_text text := current_setting('app.encryption_keys', true);
    v_stamp text := elsa_crypto.stamp() || ' ';
BEGIN
    IF v_text IS NULL OR NOT starts_with(v_text, v_stamp) THEN
        RAISE EXCEPTION 'this transaction was given no encryption keys'
        USING
            ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Begin it with SELECT elsa_crypto.use_keys($1), the ring as a bound parameter. '
                'Keys set for a session, a role or a database are not taken.';
    END IF;
    RETURN substr(v_text, length(v_stamp) + 1)::jsonb;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.tenant()
RETURNS text
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_tenant text := nullif(current_setting('app.current_tenant_id', true), '');
BEGIN
    IF v_tenant IS NULL THEN
        RAISE EXCEPTION 'this transaction names no tenant, and each tenant''s values have a key of their own'
        USING
            ERRCODE = 'object_not_in_prerequisite_state',
            HINT = 'Begin it with SELECT set_config(''app.current_tenant_id'', $1, true).';
    END IF;
    RETURN v_tenant;
END
$function$;

-- A tenant's key of 64 bytes: HKDF (RFC 5869) with SHA-512, no salt, info "elsapg:" || tenant.
-- NULL if the ring has no key of that id.
CREATE OR REPLACE FUNCTION elsa_crypto.tenant_key(p_ring jsonb, p_key_id text, p_tenant text)
RETURNS bytea
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN public.hmac(
        convert_to('elsapg:' || p_tenant, 'UTF8') || '\x01'::bytea,
        public.hmac(decode(p_ring -> 'keys' ->> p_key_id, 'base64'), ''::bytea, 'sha512'),
        'sha512'
    );
END
$function$;

-- The tag of A256CBC-HS512 (RFC 7518, 5.2.5); the additional data is key id, zero byte, context.
CREATE OR REPLACE FUNCTION elsa_crypto.tag(p_key bytea, p_key_id text, p_context text, p_data bytea)
RETURNS bytea
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_additional bytea := convert_to(p_key_id, 'UTF8') || '\x00'::bytea || convert_to(p_context, 'UTF8');
BEGIN
    RETURN substr(
        public.hmac(
            v_additional || p_data || int8send(8::bigint * octet_length(v_additional)),
            substr(p_key, 1, 32),
            'sha512'
        ),
        1,
        32
    );
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.seal(p_value jsonb, p_context text, p_tenant text, p_ring jsonb)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_key_id text := p_ring ->> 'current';
    v_key bytea := elsa_crypto.tenant_key(p_ring, v_key_id, p_tenant);
    v_iv bytea := public.gen_random_bytes(16);
    v_data bytea;
BEGIN
    v_data := v_iv || public.encrypt_iv(
        convert_to(p_value::text, 'UTF8'), substr(v_key, 33, 32), v_iv, 'aes-cbc/pad:pkcs'
    );
    RETURN jsonb_build_object(
        '$enc',
        replace(
            encode(v_data || elsa_crypto.tag(v_key, v_key_id, p_context, v_data), 'base64'), E'\n', ''
        ),
        'kid', v_key_id,
        'ctx', p_context
    );
END
$function$;

-- NULL if the ring lacks the key, or the value was changed or is another tenant's.
CREATE OR REPLACE FUNCTION elsa_crypto.unseal(p_value jsonb, p_tenant text, p_ring jsonb)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_key_id text := p_value ->> 'kid';
    v_key bytea := elsa_crypto.tenant_key(p_ring, v_key_id, p_tenant);
    v_text text := p_value ->> '$enc';
    v_sealed bytea;
    v_data bytea;
BEGIN
    IF v_key IS NULL OR v_text !~ '^([A-Za-z0-9+/]{4})+([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$' THEN
        RETURN NULL;
    END IF;
    v_sealed := decode(v_text, 'base64');
    -- The last character's spare bits count, too: one value has one text.
    IF octet_length(v_sealed) < 64 OR replace(encode(v_sealed, 'base64'), E'\n', '') <> v_text THEN
        RETURN NULL;
    END IF;
    v_data := substr(v_sealed, 1, octet_length(v_sealed) - 32);
    -- Hashed, so that the time a comparison takes says nothing about the tag.
    IF sha256(substr(v_sealed, octet_length(v_sealed) - 31))
        <> sha256(elsa_crypto.tag(v_key, v_key_id, p_value ->> 'ctx', v_data))
    THEN
        RETURN NULL;
    END IF;
    RETURN convert_from(
        public.decrypt_iv(
            substr(v_data, 17), substr(v_key, 33, 32), substr(v_data, 1, 16), 'aes-cbc/pad:pkcs'
        ),
        'UTF8'
    )::jsonb;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.is_encrypted(p_value jsonb)
RETURNS boolean
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN CASE
        WHEN p_value IS NULL THEN NULL
        WHEN jsonb_typeof(p_value) <> 'object' THEN false
        ELSE p_value ?& ARRAY['$enc', 'kid', 'ctx']
            AND p_value - ARRAY['$enc', 'kid', 'ctx'] = '{}'
            AND jsonb_typeof(p_value -> '$enc') = 'string'
            AND jsonb_typeof(p_value -> 'ctx') = 'string'
            AND jsonb_typeof(p_value -> 'kid') = 'string'
            AND p_value ->> 'kid' ~ '^[a-z0-9][a-z0-9._-]{0,31}$'
    END;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.key_id_of(p_value jsonb)
RETURNS text
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    RETURN CASE WHEN elsa_crypto.is_encrypted(p_value) THEN p_value ->> 'kid' END;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.encrypt(p_value jsonb, p_context text)
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF coalesce(p_context, '') = '' THEN
        RAISE EXCEPTION 'the context of an encrypted value is missing'
        USING
            ERRCODE = 'invalid_parameter_value',
            HINT = 'Name what the value is, such as ''users.ssn'': it decrypts as nothing else.';
    END IF;
    IF p_value IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN elsa_crypto.seal(p_value, p_context, elsa_crypto.tenant(), elsa_crypto.ring());
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.decrypt(p_value jsonb, p_context text)
RETURNS jsonb
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_ring jsonb;
    v_clear jsonb;
BEGIN
    IF p_value IS NULL THEN
        RETURN NULL;
    END IF;
    IF NOT elsa_crypto.is_encrypted(p_value) THEN
        RAISE EXCEPTION 'this value is not encrypted'
        USING
            ERRCODE = 'invalid_parameter_value',
            HINT = 'elsa_crypto.is_encrypted tells. A clear value in place of an encrypted one may be an attack.';
    END IF;
    IF p_value ->> 'ctx' IS DISTINCT FROM p_context THEN
        RAISE EXCEPTION 'this value was encrypted as "%", not as "%"', p_value ->> 'ctx', p_context
        USING
            ERRCODE = 'invalid_parameter_value',
            HINT = 'It was moved here from another field, or the context is misspelt.';
    END IF;
    v_ring := elsa_crypto.ring();
    IF NOT v_ring -> 'keys' ? (p_value ->> 'kid') THEN
        RAISE EXCEPTION 'this value was encrypted with key "%", which this transaction was not given',
            p_value ->> 'kid'
        USING
            ERRCODE = 'undefined_object',
            HINT = 'Put the key back into the stack''s ring, or give the application the new ring.';
    END IF;
    v_clear := elsa_crypto.unseal(p_value, elsa_crypto.tenant(), v_ring);
    IF v_clear IS NULL THEN
        RAISE EXCEPTION 'this value does not decrypt with key "%"', p_value ->> 'kid'
        USING
            ERRCODE = 'external_routine_invocation_exception',
            HINT = 'It was changed, it is another tenant''s, or the key is not the one of that id.';
    END IF;
    RETURN v_clear;
END
$function$;

CREATE OR REPLACE FUNCTION elsa_crypto.check_paths(p_paths text[])
RETURNS void
LANGUAGE plpgsql
IMMUTABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_path text;
    v_valid boolean := p_paths IS NOT NULL AND p_paths IS NOT DISTINCT FROM ARRAY(SELECT unnest(p_paths));
BEGIN
    IF v_valid THEN
        FOREACH v_path IN ARRAY p_paths LOOP
            v_valid := v_valid
                AND v_path IS NOT NULL
                AND pg_input_is_valid(v_path, 'text[]')
                AND array_ndims(v_path::text []) = 1
                AND array_position(v_path::text [], NULL) IS NULL;
        END LOOP;
    END IF;
    IF v_valid IS NOT TRUE THEN
        RAISE EXCEPTION 'these are no paths of a document: %', p_paths
        USING
            ERRCODE = 'invalid_parameter_value',
            HINT = 'Write each as a text array of its own: ARRAY[''{variables,ssn}'', ''{input,card}''].';
    END IF;
END
$function$;

-- Paths are PostgreSQL's, as for the operator #>: '{variables,ssn}'. The path is the context. A
-- path that the document does not have is left out.
CREATE OR REPLACE FUNCTION elsa_crypto.encrypt_fields(p_document jsonb, p_paths text[])
RETURNS jsonb
LANGUAGE plpgsql
VOLATILE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_document jsonb := p_document;
    v_path text [];
    v_value jsonb;
    v_number integer;
BEGIN
    PERFORM elsa_crypto.check_paths(p_paths);
    FOR v_number IN 1 .. cardinality(p_paths) LOOP
        v_path := p_paths[v_number]::text [];
        v_value := v_document #> v_path;
        IF v_value IS NOT NULL THEN
            v_document := jsonb_set(v_document, v_path, elsa_crypto.encrypt(v_value, v_path::text), false);
        END IF;
    END LOOP;
    RETURN v_document;
END
$function$;

-- Backwards: where one path leads into another, what was encrypted last must be decrypted first.
CREATE OR REPLACE FUNCTION elsa_crypto.decrypt_fields(p_document jsonb, p_paths text[])
RETURNS jsonb
LANGUAGE plpgsql
STABLE
PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    v_document jsonb := p_document;
    v_path text [];
    v_value jsonb;
    v_number integer;
BEGIN
    PERFORM elsa_crypto.check_paths(p_paths);
    FOR v_number IN REVERSE cardinality(p_paths) .. 1 LOOP
        v_path := p_paths[v_number]::text [];
        v_value := v_document #> v_path;
        IF v_value IS NOT NULL THEN
            v_document := jsonb_set(v_document, v_path, elsa_crypto.decrypt(v_value, v_path::text), false);
        END IF;
    END LOOP;
    RETURN v_document;
END
$function$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA elsa_crypto FROM PUBLIC;
GRANT EXECUTE ON FUNCTION
elsa_crypto.use_keys(text),
elsa_crypto.encrypt(jsonb, text),
elsa_crypto.decrypt(jsonb, text),
elsa_crypto.encrypt_fields(jsonb, text[]),
elsa_crypto.decrypt_fields(jsonb, text[]),
elsa_crypto.is_encrypted(jsonb),
elsa_crypto.key_id_of(jsonb),
elsa_crypto.stamp(),
elsa_crypto.ring(),
elsa_crypto.tenant(),
elsa_crypto.tenant_key(jsonb, text, text),
elsa_crypto.tag(bytea, text, text, bytea),
elsa_crypto.seal(jsonb, text, text, jsonb),
elsa_crypto.unseal(jsonb, text, jsonb),
elsa_crypto.check_paths(text[])
TO elsa_user, elsa_worker, elsa_maintenance;

COMMENT ON SCHEMA elsa_crypto IS
'Encryption of JSON values. The keys are given to each transaction and never stored in the database.';
COMMENT ON FUNCTION elsa_crypto.use_keys(text) IS
'Gives this transaction the stack''s ring of keys. Always as a bound parameter.';
COMMENT ON FUNCTION elsa_crypto.encrypt(jsonb, text) IS
'A value, encrypted with the current key for the transaction''s tenant and the context (what it is).';
COMMENT ON FUNCTION elsa_crypto.decrypt(jsonb, text) IS
'The value that was encrypted; an error if key, tenant or context differ or anything was changed.';
COMMENT ON FUNCTION elsa_crypto.encrypt_fields(jsonb, text[]) IS
'A document with the values at the given paths encrypted.';
COMMENT ON FUNCTION elsa_crypto.decrypt_fields(jsonb, text[]) IS
'A document with the values at the given paths decrypted.';
COMMENT ON FUNCTION elsa_crypto.is_encrypted(jsonb) IS
'Whether a value has the form of an encrypted one. Needs no key.';
COMMENT ON FUNCTION elsa_crypto.key_id_of(jsonb) IS
'The id of the key that a value was encrypted with; NULL if it is not encrypted. Needs no key.';
COMMENT ON FUNCTION elsa_crypto.stamp() IS
'What marks the keys as this transaction''s.';
COMMENT ON FUNCTION elsa_crypto.ring() IS
'The keys that this transaction was given; an error if none.';
COMMENT ON FUNCTION elsa_crypto.tenant() IS
'The tenant of this transaction; an error if none.';
COMMENT ON FUNCTION elsa_crypto.tenant_key(jsonb, text, text) IS
'The 64 bytes that encrypt and authenticate a tenant''s values; NULL without a key of that id.';
COMMENT ON FUNCTION elsa_crypto.tag(bytea, text, text, bytea) IS
'The authentication tag of initialization vector and ciphertext.';
COMMENT ON FUNCTION elsa_crypto.seal(jsonb, text, text, jsonb) IS
'Encrypts a value for a context and a tenant.';
COMMENT ON FUNCTION elsa_crypto.unseal(jsonb, text, jsonb) IS
'Decrypts a value of a tenant; NULL if it is not authentic.';
COMMENT ON FUNCTION elsa_crypto.check_paths(text[]) IS
'An error unless these are paths of a document.';
