-- The one extension the embedded programs bring besides plpgsql.

CREATE SCHEMA vectors;
CREATE EXTENSION vector SCHEMA vectors;
CREATE TABLE vectors.embeddings (id integer PRIMARY KEY, embedding vectors.vector(3), half vectors.halfvec(2), sparse vectors.sparsevec(5));
INSERT INTO vectors.embeddings VALUES (1, '[1,-2.5,1e-10]', '[1,2]', '{1:1.5,3:2}/5'), (2, NULL, '[0,-0]', NULL);
CREATE INDEX near ON vectors.embeddings USING hnsw (embedding vectors.vector_l2_ops) WITH (m = 4);
