#!/bin/sh
echo "hello $1"
echo "and $2"
